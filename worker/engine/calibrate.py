"""Measures how long U-Net calls take and how much memory, by the number of their rows."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import torch

from worker.batching import LADDER, LARGEST_WHOLE, PIXEL_BUDGET, Size, StepCurve
from worker.batching.sizes import pixels_of
from worker.engine.memory import DeviceMemory, is_out_of_memory
from worker.engine.pipeline import ResidentPipeline

# Timed calls in a row. Later there are more: a noisy second hardly hits all.
_REPEATS: Final = 2

# Before this part of the patience is used up, measuring on is cheaper than being fooled by noise.
_HASTE: Final = 0.1


@dataclass(frozen=True, slots=True)
class Calibration:
    """What was measured at one size.

    Args:
        curve: Seconds of a U-Net call by rows.
        step_bytes: Peak bytes of a call by rows; empty where the device does not tell.
        decode_seconds: Seconds of decoding one image.
        decode_bytes: Its peak bytes; ``None`` where the device does not tell, or had not enough.
    """

    curve: StepCurve
    step_bytes: Mapping[int, int]
    decode_seconds: float | None
    decode_bytes: int | None


class Calibrator:
    """Measures on dummy inputs, from few rows to many.

    It stops where more rows give no more throughput, where a call takes longer than it may, where
    memory runs out, or when its time is up.

    Args:
        pipeline: The model.
        memory: Its device's memory.
        most: Most rows of interest; ``None``: any number.
        target_seconds: What a call should take at the most; ``None``: any time.
    """

    def __init__(
        self,
        pipeline: ResidentPipeline,
        memory: DeviceMemory,
        *,
        most: int | None = None,
        target_seconds: float | None = None,
    ) -> None:
        self._pipeline = pipeline
        self._memory = memory
        self._most = most
        self._target_seconds = target_seconds

    @torch.inference_mode()
    def measure(
        self, size: Size, patience: float, is_wanted: Callable[[], bool] = lambda: True
    ) -> Calibration | None:
        """Measure at ``size``; ``None``: not even one row fits, or it is wanted no longer.

        Args:
            size: Width and height in pixels.
            patience: Seconds of measured calls after which no more rows are tried. First calls are
                not counted: what they take, such as compiling, is not lost.
            is_wanted: Asked before each number of rows whether to go on.
        """
        spent = 0.0
        calls: dict[int, Callable[[], object]] = {}
        seconds: dict[int, float] = {}
        step_bytes: dict[int, int] = {}
        for rows in self._ladder():
            if not is_wanted():
                return None
            if not self._should_fit(step_bytes, rows):
                break
            calls[rows] = self._step(size, rows)
            measured = self._timed(calls[rows], patience)
            if measured is None:
                break
            seconds[rows], peak = measured
            spent += _REPEATS * seconds[rows]
            if peak is not None:
                step_bytes[rows] = peak
            if self._is_too_slow(rows, seconds[rows]) or spent > patience:
                break
            if spent > _HASTE * patience and StepCurve(seconds).is_saturated:
                spent += self._look_again(calls, seconds, patience - spent)
                if StepCurve(seconds).is_saturated:
                    break
        if not seconds:
            return None
        self._look_again(calls, seconds, patience - spent)
        # A larger image is decoded by tiles.
        largest = PIXEL_BUDGET if self._pipeline.residency.tiles_vae else LARGEST_WHOLE
        is_whole = pixels_of(size) <= largest
        decoded = self._timed(self._decode(size), patience) if is_whole else None
        self._memory.release()
        decode_seconds, decode_bytes = decoded or (None, None)
        return Calibration(StepCurve(seconds), step_bytes, decode_seconds, decode_bytes)

    def _look_again(
        self, calls: Mapping[int, Callable[[], object]], seconds: dict[int, float], patience: float
    ) -> float:
        """Lower what was measured to what it can be, as far as there is time; what that took."""
        spent = 0.0
        for rows in list(seconds):
            if spent + seconds[rows] > patience:
                break
            try:
                again = self._seconds(calls[rows])
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                break
            spent += again
            seconds[rows] = min(seconds[rows], again)
        return spent

    def _ladder(self) -> list[int]:
        if self._most is None:
            return list(LADDER)
        return [rows for rows in LADDER if rows < self._most] + [self._most]

    def _is_too_slow(self, rows: int, seconds: float) -> bool:
        return self._target_seconds is not None and rows > 1 and seconds > self._target_seconds

    def _should_fit(self, step_bytes: dict[int, int], rows: int) -> bool:
        """Whether so many rows may be tried without taking more than may be taken."""
        available = self._memory.available()
        if available is None or not step_bytes:
            return True
        most = max(step_bytes)
        return step_bytes[most] / most * rows <= available

    def _timed(
        self, call: Callable[[], object], patience: float
    ) -> tuple[float, int | None] | None:
        """The best time of some calls and the peak of one; ``None``: memory ran out."""
        try:
            # The first one pays for what later ones find ready.
            with self._memory.peak() as peak:
                self._seconds(call)
            seconds = [self._seconds(call)]
            while len(seconds) < _REPEATS and sum(seconds) < patience:
                seconds.append(self._seconds(call))
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        else:
            return min(seconds), peak.bytes
        # Only now, with the error gone, is what its frames held free.
        self._memory.release()
        return None

    def _seconds(self, call: Callable[[], object]) -> float:
        start = time.perf_counter()
        call()
        self._pipeline.synchronize()
        return time.perf_counter() - start

    def _step(self, size: Size, rows: int) -> Callable[[], object]:
        encoded: list[tuple[torch.Tensor, torch.Tensor]] = []

        def call() -> object:
            pipeline = self._pipeline
            if not encoded:
                # Once, in the call whose time does not count.
                encoded.append(pipeline.encode_prompts([""]))
            [(embeds, pooled)] = encoded
            width, height = size
            time_ids = torch.tensor([height, width, 0, 0, height, width])
            return pipeline.predict_noise(
                self._noise(size, rows),
                torch.full((rows,), 500, device=pipeline.device),
                embeds.expand(rows, -1, -1).contiguous(),
                pooled.expand(rows, -1).contiguous(),
                time_ids.to(embeds).expand(rows, -1).contiguous(),
            )

        return call

    def _decode(self, size: Size) -> Callable[[], object]:
        return lambda: self._pipeline.decode(self._noise(size, 1))

    def _noise(self, size: Size, rows: int) -> torch.Tensor:
        pipeline = self._pipeline
        shape = pipeline.latent_shape(*size)
        return torch.randn((rows, *shape), dtype=pipeline.dtype, device=pipeline.device)
