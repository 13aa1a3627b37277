"""Where the time of the worker's loop goes."""

import time
from typing import Final

from prometheus_client import Counter

from worker.engine import Tick

PHASES: Final = (
    "admission", "encode", "unet", "scheduler", "preview", "decode", "engine", "telling", "ending",
    "upkeep",
)  # fmt: skip


class LoopClock:
    """Adds each stretch of the loop to the phase that it was spent in.

    Args:
        seconds: Counts seconds by phase.
    """

    def __init__(self, seconds: Counter) -> None:
        self._counters = {phase: seconds.labels(phase) for phase in PHASES}
        self._last = time.perf_counter()

    def start(self) -> None:
        """Begin a stretch: what came before is none of the loop's."""
        self._last = time.perf_counter()

    def lap(self, phase: str) -> None:
        """Let the stretch that ends now count for ``phase``."""
        self._add(phase, self._since_last())

    def lap_tick(self, tick: Tick) -> None:
        """Let the stretch that ends now count for a tick's phases; the rest is the engine's."""
        rest = self._since_last()
        for phase, seconds in (
            ("encode", tick.encode_seconds),
            ("unet", tick.unet_seconds),
            ("scheduler", tick.scheduler_seconds),
            ("preview", tick.preview_seconds),
            ("decode", tick.decode_seconds),
        ):
            self._add(phase, seconds)
            rest -= seconds
        self._add("engine", rest)

    def _since_last(self) -> float:
        last, self._last = self._last, time.perf_counter()
        return self._last - last

    def _add(self, phase: str, seconds: float) -> None:
        # Clocks that are read one after the other can miss by nanoseconds.
        self._counters[phase].inc(max(0.0, seconds))
