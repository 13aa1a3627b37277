"""``koala measure``: this machine's curves, for ``koala simulate --curve``."""

import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from koala import output_file
from koala.catalogue import resolve
from koala.curves import DeviceCurves, SizeCurve
from koala.errors import ModelNotFound
from koala.settings import Settings
from worker.batching import Size
from worker.engine import Engine, ResidentPipeline, SampleRequest
from worker.engine.calibrate import Calibrator
from worker.engine.capacity import START_PATIENCE
from worker.engine.memory import memory_of
from worker.model import CannotLoad, load

# Steps over which the time between U-Net calls is measured.
_STEPS: Final = 20


class CannotMeasure(Exception):
    """There are no curves; the message says why, in one line."""


def run(settings: Settings, sizes: Sequence[Size], output: Path) -> DeviceCurves:
    """Load the model, measure it at ``sizes`` (none: its native one), write the file.

    Raises:
        CannotMeasure: The model cannot be loaded, a size is none of its, or not a row of it fits.
        OSError: The file cannot be written.
    """
    output_file.check(output)
    try:
        card = resolve(settings.model, settings.model_revision)
        sizes = sizes or [(card.native_side, card.native_side)]
        for size in sizes:
            wrong = card.size_error(*size)
            if wrong is not None:
                raise CannotMeasure(f"--size: {size[0]}x{size[1]}: {wrong}.")
        pipeline = load(settings, card)
    except ModelNotFound as error:
        raise CannotMeasure(error.message) from None
    except CannotLoad as error:
        raise CannotMeasure(str(error)) from None
    curves = DeviceCurves(
        name=f"{card.id} on {pipeline.device}",
        tick_overhead_seconds=_overhead(pipeline, sizes[0], card.guidance_scale),
        sizes=tuple(_measure(pipeline, size, settings.max_batch_rows) for size in sizes),
    )
    output_file.replace(output, f"{curves.model_dump_json(indent=2)}\n".encode())
    return curves


def _measure(pipeline: ResidentPipeline, size: Size, most: int | None) -> SizeCurve:
    calibrator = Calibrator(pipeline, memory_of(pipeline.device), most=most)
    calibration = calibrator.measure(size, START_PATIENCE)
    if calibration is None or calibration.decode_seconds is None:
        raise CannotMeasure(f"--size: {size[0]}x{size[1]}: too little memory on the device.")
    return SizeCurve(
        size=size,
        step_seconds=dict(calibration.curve.points),
        decode_seconds=calibration.decode_seconds,
    )


def _overhead(pipeline: ResidentPipeline, size: Size, guidance_scale: float) -> float:
    """Seconds of a tick beside U-Net and decoder, for one image drawn alone."""
    engine = Engine(pipeline, max_rows=2)
    width, height = size
    engine.add(SampleRequest("", "", None, width, height, _STEPS, guidance_scale, 0))
    rests = []
    while not engine.is_idle:
        began = time.perf_counter()
        engine.step()
        seconds = time.perf_counter() - began
        tick = engine.last_tick
        rests.append(seconds - tick.unet_seconds - tick.decode_seconds)
    # The first tick encodes the prompt, which later requests find in the cache.
    return statistics.median(rests)
