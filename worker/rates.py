"""How fast the worker is, with a short memory."""

import math
from typing import Final

_MEMORY_SECONDS: Final = 60.0
_STEP_WEIGHT: Final = 0.2


class Rates:
    """Moving averages for the worker's account of itself."""

    def __init__(self) -> None:
        self.seconds_per_step: float | None = None
        self.images_total = 0
        self._images = 0.0
        self._busy_seconds = 0.0

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

    def image(self) -> None:
        """Note a stored image."""
        self.images_total += 1
        self._images += 1

    @property
    def images_per_second(self) -> float | None:
        """Images per second of engine time; ``None`` before the first image."""
        return self._images / self._busy_seconds if self._images and self._busy_seconds else None
