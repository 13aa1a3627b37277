"""A device as the simulator knows it: how long it takes for what."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from koala.curves import DeviceCurves
from worker.batching import Size, StepCurve, curve_at, nearest_size, profitable_rows
from worker.batching.sizes import pixels_of


@dataclass(frozen=True)
class Device:
    """Seconds of what an engine does, and the batch that follows from them.

    Sizes that are not given are derived from the nearest one as the engine derives them, the work
    being taken for proportional to the pixels. Memory is no limit here: ``max_rows`` is.

    Args:
        name: What to call it.
        curves: Seconds of a U-Net call by size and rows; the first size is the native one.
        decode_seconds: Seconds of decoding one image, by size; the same sizes.
        tick_overhead_seconds: Seconds of a tick beside the U-Net and the decoder.
        max_rows: Most rows of a call, as the operator wants it.
        target_seconds: Seconds that a call should take at the most, as the operator wants it.
        assumptions: What the numbers rest on, a sentence each.

    Raises:
        ValueError: No size is given.
    """

    name: str
    curves: Mapping[Size, StepCurve]
    decode_seconds: Mapping[Size, float]
    tick_overhead_seconds: float = 0.0
    max_rows: int | None = None
    target_seconds: float | None = None
    assumptions: tuple[str, ...] = ()
    _derived: dict[Size, StepCurve] = field(default_factory=dict, repr=False, compare=False)
    _caps: dict[Size, int] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.curves:
            raise ValueError("a device needs the curve of at least one size")

    @classmethod
    def measured(
        cls, curves: DeviceCurves, max_rows: int | None = None, target_seconds: float | None = None
    ) -> "Device":
        """The device whose curves were measured."""
        return cls(
            name=curves.name,
            curves={entry.size: StepCurve(entry.step_seconds) for entry in curves.sizes},
            decode_seconds={entry.size: entry.decode_seconds for entry in curves.sizes},
            tick_overhead_seconds=curves.tick_overhead_seconds,
            max_rows=max_rows,
            target_seconds=target_seconds,
            assumptions=(
                "The curve is taken as it stands in the file; a size that is not in it is derived "
                "from the nearest one, work being proportional to pixels.",
            ),
        )

    @property
    def native_size(self) -> Size:
        """The first of the given sizes."""
        return next(iter(self.curves))

    def cap(self, size: Size) -> int:
        """Most rows of a U-Net call at ``size``, by the engine's rule."""
        if size not in self._caps:
            rows = profitable_rows(self.curve(size), self.max_rows, self.target_seconds)
            self._caps[size] = rows
        return self._caps[size]

    def seconds(self, size: Size, rows: int) -> float:
        """Seconds of one U-Net call."""
        return self.curve(size).seconds(rows)

    def step_seconds(self, size: Size, rows: int) -> float:
        """Seconds of one step of ``rows`` rows, in several calls where the cap is lower."""
        calls, rest = divmod(rows, self.cap(size))
        seconds = calls * self.seconds(size, self.cap(size))
        return seconds + (self.seconds(size, rest) if rest else 0.0)

    def image_seconds(self, size: Size) -> float:
        """Seconds of decoding one image."""
        nearest = nearest_size(size, self.decode_seconds)
        return self.decode_seconds[nearest] * pixels_of(size) / pixels_of(nearest)

    def curve(self, size: Size) -> StepCurve:
        """Seconds of a U-Net call by rows."""
        if size not in self._derived:
            self._derived[size] = curve_at(size, self.curves)
        return self._derived[size]
