"""How long a worker takes for what, from its own account."""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from koala.workers import MeasuredSize

# Width and height of an image in pixels.
Size: TypeAlias = tuple[int, int]

# A guided image takes two rows, in one call wherever they fit.
_GUIDED_ROWS: Final = 2


class Pace:
    """Seconds of what a worker does. A size that it did not measure is derived from the nearest.

    Args:
        sizes: What it measured; at least one.
        store_seconds: From an image's last pixel until its job is over.

    Raises:
        ValueError: Nothing was measured.
    """

    def __init__(self, sizes: Sequence[MeasuredSize], store_seconds: float = 0.0) -> None:
        if not sizes:
            raise ValueError("a pace needs at least one measured size")
        self.store_seconds = store_seconds
        self._sizes = list(sizes)
        self._derived: dict[Size, _Derived] = {}

    def cap(self, size: Size) -> int:
        """Most rows of a U-Net call."""
        return self._at(size).cap

    def step_seconds(self, size: Size, rows: int) -> float:
        """Seconds of one step of ``rows`` rows, in several calls where that is above the cap."""
        at = self._at(size)
        if rows not in at.steps:
            calls = max(1.0, rows / at.cap)
            seconds = _between(at.nearest.step_seconds, min(rows, at.cap) * at.factor)
            at.steps[rows] = calls * seconds * at.nearest.slowness
        return at.steps[rows]

    def decode_seconds(self, size: Size) -> float:
        """Seconds of decoding one image."""
        at = self._at(size)
        return (at.nearest.decode_seconds or 0.0) * at.factor * at.nearest.slowness

    def _at(self, size: Size) -> "_Derived":
        if size not in self._derived:
            pixels = size[0] * size[1]
            best = min(self._sizes, key=lambda known: abs(known.width * known.height - pixels))
            factor = pixels / (best.width * best.height)
            cap = max(_GUIDED_ROWS, round(best.max_rows / factor))
            self._derived[size] = _Derived(best, factor, best.max_rows if factor == 1 else cap)
        return self._derived[size]


@dataclass(slots=True)
class _Derived:
    """What follows for one size: ``factor`` is its pixels as a multiple of the nearest one's."""

    nearest: MeasuredSize
    factor: float
    cap: int
    steps: dict[int, float] = field(default_factory=dict)


def _between(points: dict[int, float], rows: float) -> float:
    """Seconds at a number of rows: straight between measured ones, and as steep beyond them."""
    known = sorted(points)
    if rows <= known[0]:
        return points[known[0]]
    if len(known) == 1:
        return points[known[0]] * rows / known[0]
    right = min(bisect_left(known, rows), len(known) - 1)
    low, high = known[right - 1], known[right]
    slope = (points[high] - points[low]) / (high - low)
    if rows > high:
        # Noise can make a measured stretch fall; it does not fall on for ever.
        return points[high] + max(0.0, slope) * (rows - high)
    return points[low] + slope * (rows - low)
