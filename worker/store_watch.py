"""Knows whether the image store can be used: a job claimed without it is drawn and lost."""

import threading
from typing import Final

import structlog

from koala.store import ImageStore

log = structlog.get_logger()

_PROBE_SECONDS: Final = 2.0
# The log repeats itself so seldom.
_REMINDER_PROBES: Final = 30


class StoreWatch:
    """Probes the image store while it may be unusable, on a thread of its own.

    Args:
        store: The store; taken for usable until :meth:`begin` or :meth:`doubt` is called.
    """

    def __init__(self, store: ImageStore) -> None:
        self._store = store
        self._trouble: str | None = None
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._stopped = threading.Event()

    @property
    def trouble(self) -> str | None:
        """Why no job should be claimed now; ``None``: the store can be used. For any thread."""
        return self._trouble

    def begin(self) -> None:
        """Trust the store only once a probe went well."""
        self._suspect("it has not answered yet", at_once=True)

    def doubt(self, reason: str) -> None:
        """An image was not stored, for ``reason``: trust the store once a probe goes well."""
        self._suspect(reason, at_once=False)

    def close(self) -> None:
        """Probe no more; a probe under way is not waited for."""
        self._stopped.set()

    def _suspect(self, reason: str, *, at_once: bool) -> None:
        with self._lock:
            self._trouble = reason
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._watch, args=(at_once,), name="store-watch", daemon=True
                )
                self._thread.start()

    def _watch(self, at_once: bool) -> None:
        failures = 0
        while at_once or not self._stopped.wait(_PROBE_SECONDS):
            at_once = False
            try:
                self._store.probe()
            except OSError as error:
                self._trouble = str(error)
                if failures % _REMINDER_PROBES == 0:
                    log.error(
                        "the image store cannot be used, no job is claimed", reason=str(error)
                    )
                failures += 1
                continue
            if failures:
                log.info("the image store can be used again")
            with self._lock:
                self._trouble = None
                self._thread = None
                return
