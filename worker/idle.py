"""Frees the model's weights while there is nothing to draw, and loads them again."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import structlog

log = structlog.get_logger()


class Unloadable(Protocol):
    """A model that can do without its weights for a while."""

    @property
    def is_loaded(self) -> bool:
        """Whether the weights are there."""

    def unload(self) -> None:
        """Let go of the weights."""

    def reload(self) -> None:
        """Load the weights again; does nothing while they are there."""


class IdleUnload:
    """Watches one worker's model.

    The loop says when it draws; somebody else asks now and then whether it has not for long.

    Args:
        model: The model.
        seconds: How long nothing has to be drawn before the weights go; ``None``: they stay.
    """

    def __init__(self, model: Unloadable, seconds: float | None) -> None:
        self._model = model
        self._seconds = seconds
        self._idle_since = time.monotonic()
        # Held while something is drawn, and while the weights come or go.
        self._lock = threading.Lock()

    @property
    def is_loaded(self) -> bool:
        """Whether the weights are there. May be asked by any thread."""
        return self._model.is_loaded

    @contextmanager
    def awake(self) -> Iterator[None]:
        """Inside, the weights are there and stay.

        Raises:
            ModelLoadError: They could not be loaded again.
        """
        with self._lock:
            if not self._model.is_loaded:
                began = time.perf_counter()
                self._model.reload()
                seconds = round(time.perf_counter() - began, 2)
                log.info("the weights are back", seconds=seconds)
            try:
                yield
            finally:
                self._idle_since = time.monotonic()

    def check(self) -> None:
        """Free the weights if it is time; returns at once while something is drawn."""
        if self._seconds is None or not self._lock.acquire(blocking=False):
            return
        try:
            idle = time.monotonic() - self._idle_since
            if idle >= self._seconds and self._model.is_loaded:
                self._model.unload()
                log.info("the weights are freed, nothing to draw", idle_seconds=round(idle, 1))
        finally:
            self._lock.release()
