"""How many rows a U-Net call may have: what pays, what fits, and what went wrong before."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Final, Protocol

from worker.batching import (
    Looks,
    Pressure,
    Size,
    StepCurve,
    curve_at,
    nearest_size,
    profitable_rows,
)
from worker.batching.sizes import pixels_of
from worker.engine.calibrate import Calibration, Calibrator
from worker.engine.memory import DeviceMemory, DoesNotFit, HostMemory, memory_of
from worker.engine.pipeline import ResidentPipeline

# Sizes whose numbers of pixels differ by less share a measurement: a call takes about as long, and
# clients that ask for ever new sizes do not keep the worker measuring.
_ALIKE: Final = 0.12

# Sizes whose derived curve is kept at hand.
_REMEMBERED_SIZES: Final = 64

# A second measurement changes a curve where it is quicker by more than this share of it.
_NOISE: Final = 0.1

# Seconds a measurement may take: at the start nobody waits, later everybody in flight does.
START_PATIENCE: Final = 15.0
LATE_PATIENCE: Final = 1.0


class Prediction(Protocol):
    """What calls take, told before any was made. Sizes of memory are in bytes."""

    def step_bytes(self, size: Size, rows: int) -> int:
        """A U-Net call of ``rows`` rows, at the least."""

    def decode_bytes(self, size: Size) -> int:
        """Decoding one image in one piece at its peak."""


class Capacity:
    """Decides the batch by size.

    Args:
        memory: The device's memory.
        calibrator: Measures a size when it is first met; ``None``: nothing is measured, and a
            batch has as many rows as it may.
        most: Most rows of a call, as the operator wants it.
        target_seconds: Seconds that a call should take at the most, as the operator wants it.
        prediction: What calls take as long as none is measured; ``None``: unknown.

    Raises:
        ValueError: ``most`` is below 1, or missing where nothing is measured.
    """

    def __init__(
        self,
        memory: DeviceMemory | None = None,
        calibrator: Calibrator | None = None,
        *,
        most: int | None = None,
        target_seconds: float | None = None,
        prediction: Prediction | None = None,
    ) -> None:
        if most is not None and most < 1:
            raise ValueError(f"max_rows must be at least 1, got {most}")
        if most is None and calibrator is None:
            raise ValueError("a batch that is not measured needs a number of rows")
        self._memory = memory or HostMemory()
        self._calibrator = calibrator
        self._most = most
        self._target_seconds = target_seconds
        self._prediction = prediction
        self._calibrations: dict[Size, Calibration] = {}
        self._pressure: Pressure[Size] = Pressure()
        self._looks: Looks[Size] = Looks()
        self._available: int | None = self._memory.available()
        self._curve_at: Callable[[Size], StepCurve]
        self._rows_at: Callable[[Size], int]
        self._forget_derived()

    @classmethod
    def measuring(
        cls,
        pipeline: ResidentPipeline,
        *,
        most: int | None = None,
        target_seconds: float | None = None,
        budget: int | None = None,
        prediction: Prediction | None = None,
    ) -> "Capacity":
        """One that measures ``pipeline`` on its device, of which it may take ``budget`` bytes."""
        memory = memory_of(pipeline.device, budget)
        calibrator = Calibrator(pipeline, memory, most=most, target_seconds=target_seconds)
        return cls(
            memory, calibrator, most=most, target_seconds=target_seconds, prediction=prediction
        )

    @property
    def available(self) -> int | None:
        """Bytes that calls could take when one last looked; ``None``: unknown."""
        return self._available

    @property
    def calibrations(self) -> Mapping[Size, Calibration]:
        """What was measured, by size."""
        return self._calibrations

    def refresh(self) -> None:
        """Look at the device's memory anew; once a tick, while no call is running."""
        self._available = self._memory.available()

    def learn(self, size: Size, patience: float = LATE_PATIENCE) -> DoesNotFit | None:
        """Measure ``size`` unless it or one of about as many pixels was measured.

        Returns:
            Why not even one row can be drawn; ``None`` where it can.
        """
        if self._calibrator is None or self._is_known(size):
            return None
        if not self._calibrations and (refusal := self.refuse(size)) is not None:
            # Trying it would only find out what is foreseen.
            return refusal
        calibration = self._calibrator.measure(size, patience)
        if calibration is None:
            return self.refusal(size)
        # Anew, not in place: other threads may be reading the old one.
        self._calibrations = {**self._calibrations, size: calibration}
        self._forget_derived()
        self._looks.measured(size)
        return None

    def note_step(self, size: Size, rows: int, seconds: float) -> None:
        """Note what a U-Net call took."""
        if size in self._calibrations:
            self._looks.note(size, seconds, self.seconds(size, rows))

    def look_again(self, is_wanted: Callable[[], bool]) -> list[Size]:
        """Measure sizes again whose curve may come from a bad moment; those whose curve changed.

        What takes less than before counts, what takes longer is another bad moment.

        Args:
            is_wanted: Asked now and then whether to go on; what was not finished has no effect.
        """
        changed: list[Size] = []
        if self._calibrator is None:
            return changed
        for size in self._looks.due():
            before = self._calibrations[size]
            again = self._calibrator.measure(size, START_PATIENCE, is_wanted)
            if again is None:
                break
            merged = _quickest(before.curve, again.curve)
            # Where time ran out, a part of the curve would be quick and the rest as slow as before.
            covered = before.curve.points.keys() <= again.curve.points.keys()
            is_whole = covered or again.curve.is_saturated
            is_quicker = is_whole and any(
                merged.points[rows] < (1 - _NOISE) * before.curve.seconds(rows)
                for rows in merged.points
            )
            self._looks.looked(size, is_quicker)
            if is_quicker:
                step_bytes = {**before.step_bytes, **again.step_bytes}
                calibration = replace(before, curve=merged, step_bytes=step_bytes)
                self._calibrations = {**self._calibrations, size: calibration}
                self._forget_derived()
                changed.append(size)
        return changed

    def cap(self, size: Size) -> int:
        """Most rows of a U-Net call at ``size``, at least 1."""
        limits = [self._profitable(size), self._fitting(size), self._pressure.limit(size)]
        return max(1, min(limit for limit in limits if limit is not None))

    def seconds(self, size: Size, rows: int) -> float:
        """About how many seconds a U-Net call takes; without measurements, a number of pixels."""
        curve = self._curve(size)
        return curve.seconds(rows) if curve else float(pixels_of(size) * rows)

    def needs(self, size: Size, rows: int) -> int | None:
        """About how many bytes a U-Net call takes at its peak; ``None``: unknown."""
        per_pixel = self._bytes_per_row_pixel(size)
        if per_pixel is not None:
            return int(per_pixel * pixels_of(size) * rows)
        return self._prediction.step_bytes(size, rows) if self._prediction else None

    def decode_needs(self, size: Size) -> int | None:
        """About how many bytes decoding an image takes at its peak; ``None``: unknown."""
        known = [
            (pixels_of(measured), calibration.decode_bytes)
            for measured, calibration in self._calibrations.items()
            if calibration.decode_bytes
        ]
        if not known:
            return self._prediction.decode_bytes(size) if self._prediction else None
        pixels, decode_bytes = min(known, key=lambda entry: abs(entry[0] - pixels_of(size)))
        return decode_bytes * pixels_of(size) // pixels

    def decode_fits(self, size: Size) -> bool:
        """Whether an image of ``size`` can be decoded in one piece, as far as one knows."""
        needed = self.decode_needs(size)
        return needed is None or self._available is None or needed <= self._available

    def refuse(self, size: Size) -> DoesNotFit | None:
        """Why not even one row of ``size`` can be tried; ``None`` where it can."""
        needed = self.needs(size, 1)
        if needed is None or self._available is None or needed <= self._available:
            return None
        return self.refusal(size)

    def ran_out(self, size: Size, rows: int) -> int:
        """Memory ran out in a call of ``rows`` rows; the most to try from now on."""
        self.ran_out_elsewhere()
        return self._pressure.ran_out(size, rows)

    def ran_out_elsewhere(self) -> None:
        """Memory ran out in something else: tidy up, and look how much there is."""
        self._memory.release()
        self.refresh()

    def went_well(self, size: Size) -> None:
        """A call went through."""
        self._pressure.went_well(size)

    def refusal(self, size: Size) -> DoesNotFit:
        """That an image of ``size`` does not fit, with what it needs and what there is."""
        width, height = size
        return DoesNotFit(f"{width}x{height} px", self.needs(size, 1), self._available)

    def _profitable(self, size: Size) -> int | None:
        return self._rows_at(size) if self._calibrations else self._most

    def _fitting(self, size: Size) -> int | None:
        per_row = self.needs(size, 1)
        return None if not per_row or self._available is None else self._available // per_row

    def _curve(self, size: Size) -> StepCurve | None:
        return self._curve_at(size) if self._calibrations else None

    def _forget_derived(self) -> None:
        """Derive curves and rows anew from what is measured by now; every tick asks for them."""
        curves = {size: calibration.curve for size, calibration in self._calibrations.items()}

        @lru_cache(_REMEMBERED_SIZES)
        def curve(size: Size) -> StepCurve:
            return curve_at(size, curves)

        @lru_cache(_REMEMBERED_SIZES)
        def rows(size: Size) -> int:
            return profitable_rows(curve(size), self._most, self._target_seconds)

        self._curve_at, self._rows_at = curve, rows

    def _bytes_per_row_pixel(self, size: Size) -> float | None:
        if not self._calibrations:
            return None
        nearest = nearest_size(size, self._calibrations)
        measured = self._calibrations[nearest].step_bytes
        if not measured:
            return None
        # What a call takes whatever its rows counts least where they are most.
        rows = max(measured)
        return measured[rows] / rows / pixels_of(nearest)

    def _is_known(self, size: Size) -> bool:
        pixels = pixels_of(size)
        return any(abs(pixels / pixels_of(known) - 1) < _ALIKE for known in self._calibrations)


def _quickest(one: StepCurve, other: StepCurve) -> StepCurve:
    """Of each number of rows the quicker call."""
    points = dict(one.points)
    for rows, seconds in other.points.items():
        points[rows] = min(seconds, points.get(rows, seconds))
    return StepCurve(points)
