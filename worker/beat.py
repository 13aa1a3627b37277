"""A thread that does something at a steady pace, however long the engine's step takes."""

import threading
from collections.abc import Callable

import structlog

from worker.link import Link

log = structlog.get_logger()


class Beat(threading.Thread):
    """Calls ``actions`` every ``seconds`` until stopped, outages of Redis notwithstanding.

    Its ``link`` knows of those first.
    """

    def __init__(self, seconds: float, *actions: Callable[[], None]) -> None:
        super().__init__(name="beat", daemon=True)
        self._seconds = seconds
        self._actions = actions
        self._stopped = threading.Event()
        self.link = Link("beat")

    def run(self) -> None:
        """The thread's body."""
        while not self._stopped.wait(self._seconds):
            try:
                with self.link.attempt():
                    for action in self._actions:
                        action()
            except Exception:
                # Leases are at stake: whatever went wrong once, the next beat has to come.
                log.exception("a heartbeat failed")

    def stop(self) -> None:
        """End the thread; returns when the last beat is over."""
        self._stopped.set()
        if self.is_alive():
            self.join()
