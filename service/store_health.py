"""Whether the image store can be used: asked now and then, by the first that wants to know."""

import asyncio
import time
from typing import Final

import structlog
from anyio import to_thread

from koala.store import ImageStore

log = structlog.get_logger()

# How long an answer is good. A store that was repaired should be noticed soon.
_GOOD_SECONDS: Final = 15.0
_BAD_SECONDS: Final = 2.0
# Health checks give up soon.
_PATIENCE_SECONDS: Final = 1.5


class StoreHealth:
    """Probes the image store, one probe at a time.

    Args:
        store: The store.
    """

    def __init__(self, store: ImageStore) -> None:
        self._store = store
        self._trouble: str | None = None
        self._good_until = float("-inf")
        self._probe: asyncio.Task[None] | None = None
        self._probe_began = 0.0

    async def trouble(self) -> str | None:
        """Why the store cannot be used; ``None``: it can, or could seconds ago."""
        if time.monotonic() < self._good_until:
            return self._trouble
        if self._probe is None:
            self._probe_began = time.monotonic()
            self._probe = asyncio.create_task(self._ask())
        # Who asks may give up; the probe goes on for the next one.
        done, _ = await asyncio.wait([self._probe], timeout=_PATIENCE_SECONDS)
        if not done:
            return f"it has not answered for {time.monotonic() - self._probe_began:.1f} s"
        return self._trouble

    async def close(self) -> None:
        """Stop waiting for a probe that is under way."""
        if self._probe is not None:
            self._probe.cancel()
            await asyncio.wait([self._probe])

    async def _ask(self) -> None:
        try:
            # A store that hangs keeps its thread, but not the event loop that ends.
            await to_thread.run_sync(self._store.probe, abandon_on_cancel=True)
            trouble = None
        except OSError as error:
            trouble = str(error)
        if trouble != self._trouble:
            if trouble is None:
                log.info("the image store can be used again")
            else:
                log.error("the image store cannot be used", reason=trouble)
        self._trouble = trouble
        fresh = _GOOD_SECONDS if trouble is None else _BAD_SECONDS
        self._good_until = time.monotonic() + fresh
        self._probe = None
