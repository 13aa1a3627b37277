"""Whether a quantity stays where it is once the service has warmed up."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Final

from bench.soak.samples import Sample

# Over a shorter time, the noise of a few samples would be taken for growth.
SHORTEST_SECONDS: Final = 300.0

# What counts as flat: a slope per hour below so much, or below that share of the median. Memory is
# in MiB. Numbers of keys and images follow the throughput, which a busy machine lets vary.
_ALLOWED: Final[tuple[tuple[str, float, float], ...]] = (
    ("worker memory", 48.0, 0.0),
    ("memory", 16.0, 0.0),
    ("open files", 4.0, 0.0),
    ("sockets", 4.0, 0.0),
    ("clients", 4.0, 0.0),
    ("keys", 40.0, 0.5),
    ("images", 40.0, 0.5),
)


@dataclass(frozen=True, slots=True)
class Trend:
    """One quantity after the warm-up: median, extremes, and slope per hour against its limit."""

    name: str
    middle: float
    lowest: float
    highest: float
    per_hour: float
    limit: float

    @property
    def is_flat(self) -> bool:
        """Whether it does not grow. To shrink is no fault."""
        return self.per_hour <= self.limit


def trends(samples: Sequence[Sample], warm_up: float) -> list[Trend]:
    """The trend of each quantity over the samples taken after ``warm_up`` seconds."""
    kept = [sample for sample in samples if sample.seconds >= warm_up]
    if len(kept) < 2:
        return []
    times = [sample.seconds for sample in kept]
    found = []
    for name in kept[0].values:
        values = [sample.values[name] for sample in kept]
        middle = median(values)
        found.append(
            Trend(
                name=name,
                middle=middle,
                lowest=min(values),
                highest=max(values),
                per_hour=3600 * slope(times, values),
                limit=_limit(name, middle),
            )
        )
    return found


def slope(times: Sequence[float], values: Sequence[float]) -> float:
    """The Theil-Sen slope: the median over all pairs, so that a few outliers say nothing."""
    slopes = [
        (values[j] - values[i]) / (times[j] - times[i])
        for i in range(len(times))
        for j in range(i + 1, len(times))
        if times[j] > times[i]
    ]
    return median(slopes)


def _limit(name: str, middle: float) -> float:
    for part, least, share in _ALLOWED:
        if part in name:
            return max(least, share * middle)
    raise ValueError(f"nobody said how much {name!r} may grow")
