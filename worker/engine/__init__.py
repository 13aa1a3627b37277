"""The engine: draws many images at once, one denoising step of a batch at a time."""

from worker.engine.capacity import START_PATIENCE, Capacity
from worker.engine.engine import Engine
from worker.engine.events import EngineEvent, Failed, Finished, Preview, Progress
from worker.engine.loading import ModelLoadError
from worker.engine.memory import DoesNotFit
from worker.engine.pipeline import ResidentPipeline
from worker.engine.previews import COMPLAINT_SECONDS
from worker.engine.request import SampleKey, SampleRequest
from worker.engine.speedups import SpeedUps
from worker.engine.tick import Tick

__all__ = [
    "COMPLAINT_SECONDS",
    "START_PATIENCE",
    "Capacity",
    "DoesNotFit",
    "Engine",
    "EngineEvent",
    "Failed",
    "Finished",
    "ModelLoadError",
    "Preview",
    "Progress",
    "ResidentPipeline",
    "SampleKey",
    "SampleRequest",
    "SpeedUps",
    "Tick",
]
