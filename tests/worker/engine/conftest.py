"""The demo model, loaded once, as the engine and as diffusers have it."""

import pytest
import torch
from diffusers import StableDiffusionXLPipeline

from koala.catalogue import DEMO_FOLDER
from worker.engine import Engine, ResidentPipeline

TRAILING = {"timestep_spacing": "trailing"}


@pytest.fixture(scope="session")
def pipeline() -> ResidentPipeline:
    """The demo model on the CPU."""
    return ResidentPipeline.load(DEMO_FOLDER, device="cpu", scheduler_overrides=TRAILING)


@pytest.fixture(scope="session")
def reference() -> StableDiffusionXLPipeline:
    """diffusers' own pipeline with the same weights."""
    pipeline = StableDiffusionXLPipeline.from_pretrained(
        DEMO_FOLDER, dtype=torch.float32, use_safetensors=True, add_watermarker=False
    )
    pipeline.scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config, **TRAILING)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture
def engine(pipeline: ResidentPipeline) -> Engine:
    """An engine with room for four guided samples."""
    return Engine(pipeline, max_rows=8)
