"""How fast the worker is, with a short memory."""

import math
import time
from collections import deque
from dataclasses import dataclass
from typing import Final

from worker.batching import Size

_MEMORY_SECONDS: Final = 60.0
_STEP_WEIGHT: Final = 0.2

# How long the loop under load is compared with the measured curve; and what it is believed to be
# before there is anything to compare, as if it had been so for that long.
_SLOWNESS_SECONDS: Final = 15.0
_PRIOR_SECONDS: Final = 1.0
# More than that is no load, but something that happens once: a new size is being measured.
_MOST_SLOWNESS: Final = 20.0

_STORE_WEIGHT: Final = 0.1
_MINUTE: Final = 60.0


@dataclass(slots=True)
class _Laps:
    """Seconds of the loop's rounds, and what their calls take by the curve; the past counts less.

    As long as there is little of both, ``usual`` is what counts.
    """

    taken: float = 0.0
    expected: float = 0.0

    def slowness(self, usual: float) -> float:
        return (self.taken + _PRIOR_SECONDS * usual) / (self.expected + _PRIOR_SECONDS)


class Rates:
    """Moving averages for the worker's account of itself."""

    def __init__(self) -> None:
        self.seconds_per_step: float | None = None
        self.store_seconds = 0.0
        self.images_total = 0
        self._images = 0.0
        self._busy_seconds = 0.0
        self._laps: dict[Size | None, _Laps] = {None: _Laps()}
        self._stored_at: deque[float] = deque()

    def step(self, seconds: float) -> None:
        """Note the duration of a tick of the engine that advanced samples."""
        last = self.seconds_per_step
        self.seconds_per_step = seconds if last is None else last + _STEP_WEIGHT * (seconds - last)
        self.pause(seconds)

    def pause(self, seconds: float) -> None:
        """Note the duration of a tick that did something else."""
        kept = math.exp(-seconds / _MEMORY_SECONDS)
        self._images *= kept
        self._busy_seconds = self._busy_seconds * kept + seconds

    def lap(self, size: Size | None, seconds: float, expected: float) -> None:
        """Note how long a round of the loop took, and what its calls take by the curve.

        ``size`` is the measured one by which that was reckoned; ``None`` for a round without a
        step.
        """
        seconds = min(seconds, _MOST_SLOWNESS * expected)
        kept = math.exp(-seconds / _SLOWNESS_SECONDS)
        for laps in self._laps.values():
            laps.taken *= kept
            laps.expected *= kept
        for key in {None, size}:
            laps = self._laps.setdefault(key, _Laps())
            laps.taken += seconds
            laps.expected += expected

    def image(self) -> None:
        """Note a stored image."""
        self.images_total += 1
        self._images += 1
        self._stored_at.append(time.monotonic())

    def stored(self, seconds: float) -> None:
        """Note how long it took from a job's last pixel until its end could be seen."""
        weight = _STORE_WEIGHT if self.store_seconds else 1.0
        self.store_seconds += weight * (seconds - self.store_seconds)

    def slowness(self, size: Size | None = None) -> float:
        """How many times as long the loop lately took as the calls in it take by the curve.

        One size can be unlike the others: what was measured of it may have been disturbed. May be
        called from any thread.
        """
        overall = self._laps[None].slowness(1.0)
        laps = None if size is None else self._laps.get(size)
        return overall if laps is None else laps.slowness(overall)

    @property
    def images_per_second(self) -> float | None:
        """Images per second of engine time; ``None`` before the first image."""
        return self._images / self._busy_seconds if self._images and self._busy_seconds else None

    @property
    def images_last_minute(self) -> int:
        """Images stored in the last minute. May be called from any thread."""
        oldest = time.monotonic() - _MINUTE
        while self._stored_at and self._stored_at[0] < oldest:
            self._stored_at.popleft()
        return len(self._stored_at)
