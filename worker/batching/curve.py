"""How long a U-Net call takes by the number of its rows, and what batch follows from it."""

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

# A batch is large enough when it gives this share of the best throughput.
ENOUGH: Final = 0.95

# Numbers of rows at which a curve is measured, as far as more of them pay.
LADDER: Final = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)


@dataclass(frozen=True)
class StepCurve:
    """Seconds of a U-Net call by rows, as measured at some row counts.

    Between them it is a straight line, before the first the first one's time, behind the last as
    steep as the last stretch.

    Raises:
        ValueError: There is no point, or one that is not positive.
    """

    points: Mapping[int, float]

    def __post_init__(self) -> None:
        if not self.points:
            raise ValueError("a curve needs at least one point")
        for rows, seconds in self.points.items():
            if rows < 1 or not seconds > 0:
                raise ValueError(f"{rows} rows in {seconds} s is no step")
        object.__setattr__(self, "points", dict(sorted(self.points.items())))

    def seconds(self, rows: int) -> float:
        """Seconds of a call with ``rows`` rows."""
        known = list(self.points)
        if rows in self.points:
            return self.points[rows]
        if rows < known[0]:
            return self.points[known[0]]
        if len(known) == 1:
            return self.points[known[0]] * rows / known[0]
        right = min(bisect_left(known, rows), len(known) - 1)
        low, high = known[right - 1], known[right]
        slope = (self.points[high] - self.points[low]) / (high - low)
        if rows > high:
            # Noise can make a measured stretch fall; it does not fall on for ever.
            return self.points[high] + max(0.0, slope) * (rows - high)
        return self.points[low] + slope * (rows - low)

    def rate(self, rows: int) -> float:
        """Rows per second of calls with ``rows`` rows."""
        return rows / self.seconds(rows)

    def cap(self, *, least: int = 1, target_seconds: float | None = None) -> int:
        """The smallest measured number of rows that gives enough of the best throughput.

        Args:
            least: Fewer rows than that are not considered, if more were measured.
            target_seconds: Calls should not take longer; the smallest batch may all the same.
        """
        candidates = [rows for rows in self.points if rows >= least] or [max(self.points)]
        if target_seconds is not None:
            quick = [rows for rows in candidates if self.points[rows] <= target_seconds]
            candidates = quick or candidates[:1]
        best = max(self.rate(rows) for rows in candidates)
        return next(rows for rows in candidates if self.rate(rows) >= ENOUGH * best)

    def scaled(self, factor: float) -> "StepCurve":
        """The curve of rows with ``factor`` times the pixels, taking work for proportional to them.

        So a call of r such rows takes as long as one of r times ``factor`` rows did.
        """
        return StepCurve({rows: self.seconds_of(rows * factor) for rows in self.points})

    def seconds_of(self, rows: float) -> float:
        """Seconds of a call with a fractional number of rows."""
        whole = int(rows)
        if whole < 1:
            return self.seconds(1)
        share = rows - whole
        return self.seconds(whole) * (1 - share) + self.seconds(whole + 1) * share

    @property
    def is_saturated(self) -> bool:
        """Whether the last two points show that more rows give hardly more throughput."""
        rates = [self.rate(rows) for rows in self.points]
        return len(rates) >= 3 and max(rates[-2:]) * ENOUGH < max(rates[:-2])
