"""Which residency a worker loads its model with."""

from typing import Final

import structlog
import torch

from koala.catalogue import ModelCard
from koala.settings import Settings
from worker.batching import Size
from worker.engine import ResidentPipeline
from worker.engine.device import is_cuda
from worker.engine.memory import gib, memory_of
from worker.engine.residency import Residency
from worker.planning.architecture import UnknownArchitecture, architecture_of
from worker.planning.forecast import Forecast
from worker.planning.plan import Plan

log = structlog.get_logger()

# On a CPU there is nowhere else to keep a part.
_ON_CPU: Final = Residency.ALL


class Predicted:
    """The planner's figures as the engine's capacity asks for them.

    Args:
        forecast: What the calls of the model take.
        residency: What the worker loaded it with.
    """

    def __init__(self, forecast: Forecast, residency: Residency) -> None:
        self._forecast = forecast
        self._narrow = residency.narrows_unet

    def step_bytes(self, size: Size, rows: int) -> int:
        """As :meth:`Prediction.step_bytes`."""
        return self._forecast.step(size, rows, self._narrow).activations

    def decode_bytes(self, size: Size) -> int:
        """As :meth:`Prediction.decode_bytes`."""
        return self._forecast.decode(size, 1).total


class NothingFits(Exception):
    """No residency makes the model small enough; the message is one line."""


def choose(
    settings: Settings, card: ModelCard, device: torch.device, dtype: torch.dtype
) -> Residency:
    """The residency that ``settings`` name, or the first with which a guided image fits.

    Args:
        settings: Residency and budget.
        card: The model; nothing of it needs to be loaded.
        device: Where it will be drawn.
        dtype: Its number format.

    Raises:
        NothingFits: What the device has free is too little for the smallest residency.
    """
    if settings.residency != "auto":
        return Residency(settings.residency)
    if not is_cuda(device):
        return _ON_CPU
    available = memory_of(device, settings.vram_budget).available()
    assert available is not None
    return choose_for(card, dtype, available)


def choose_for(card: ModelCard, dtype: torch.dtype, available: int) -> Residency:
    """The first residency with which a guided image fits into ``available`` bytes.

    A model whose configs are not here yet, because they come with its weights, is taken whole.

    Raises:
        NothingFits: There is none.
    """
    size = (card.native_side, card.native_side)
    try:
        # The context is there already, and what is available is less a reserve.
        plan = Plan(architecture_of(card), size, dtype, context=0, reserve=0)
    except UnknownArchitecture as reason:
        log.info("everything stays on the device", reason=str(reason))
        return Residency.ALL
    chosen = plan.choose(available)
    if chosen is None:
        smallest = plan.peak(Residency.FP8_UNET, rows=1)
        raise NothingFits(
            f"{card.id} does not fit into the device's memory: needs {gib(smallest)} at the least, "
            f"{gib(available)} free"
        )
    log.info("planned", residency=chosen, peak=gib(plan.peak(chosen)), available=gib(available))
    return chosen


def predict(card: ModelCard, pipeline: ResidentPipeline) -> Predicted | None:
    """What the worker's calls will take; ``None`` where memory is not counted or nobody knows."""
    if not is_cuda(pipeline.device):
        return None
    try:
        forecast = Forecast(architecture_of(card), pipeline.dtype)
    except UnknownArchitecture:
        # Said when the residency was chosen. The first call will tell.
        return None
    return Predicted(forecast, pipeline.residency)
