"""Who waits for which job: one subscription per process wakes all of them.

Waiters register before they look at the job, so no end can slip in between. Messages lost while
Redis was away are made up for by a slow look at the states of all watched jobs.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Final

import redis.asyncio
import structlog

from koala.events import EventType, parse_wake
from koala.queue import JobQueue
from service.ending import end
from service.keep_going import keep_going

log = structlog.get_logger()

# Longer than it takes a server to write its file again that was kept from it for a moment.
_REFUSAL_SECONDS: Final = 3.0


class Hub:
    """Tells waiters when their job may have ended.

    Args:
        connection: Where the wake-up messages come from.
        queue: The queue whose jobs are watched.
        poll_seconds: How often all watched jobs are looked at, messages or not.
        on_end: Called with the end of any job that a message tells of.
    """

    def __init__(
        self,
        connection: redis.asyncio.Redis,
        queue: JobQueue,
        poll_seconds: float = 1.5,
        on_end: Callable[[str, EventType], None] = lambda job_id, event: None,
    ) -> None:
        self._redis = connection
        self._queue = queue
        self._poll_seconds = poll_seconds
        self._on_end = on_end
        self._watches: dict[str, set[asyncio.Event]] = {}
        self._dismissed = False
        self._refused_since: float | None = None

    @property
    def is_refused(self) -> bool:
        """Whether Redis has refused all writes for a while: no job can be drawn."""
        since = self._refused_since
        return since is not None and time.monotonic() - since >= _REFUSAL_SECONDS

    @property
    def is_dismissed(self) -> bool:
        """Whether nobody should wait any longer, because the process is about to end."""
        return self._dismissed

    def dismiss(self) -> None:
        """Send all waiters away."""
        self._dismissed = True
        for job_id in self._watches:
            self._wake(job_id)

    @property
    def watched(self) -> int:
        """How many jobs are watched right now."""
        return len(self._watches)

    @contextmanager
    def watch(self, job_id: str) -> Iterator[asyncio.Event]:
        """An event that is set whenever the job may have ended; look for yourself, then clear it.

        The job need not exist yet.
        """
        event = asyncio.Event()
        if self._dismissed:
            event.set()
        watches = self._watches.setdefault(job_id, set())
        watches.add(event)
        try:
            yield event
        finally:
            watches.discard(event)
            if not watches:
                del self._watches[job_id]

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Listen for as long as the context lasts."""
        tasks = [
            asyncio.create_task(keep_going(work, "hub")) for work in (self._listen, self._poll)
        ]
        try:
            yield
        finally:
            await end(*tasks)

    def _wake(self, job_id: str) -> None:
        for event in self._watches.get(job_id, ()):
            event.set()

    async def _listen(self) -> None:
        async with self._redis.pubsub(ignore_subscribe_messages=True) as subscription:
            await subscription.subscribe(self._queue.keys.wake)
            async for message in subscription.listen():
                self._receive(message["data"])

    def _receive(self, message: bytes) -> None:
        try:
            job_id, event_type = parse_wake(message)
        except ValueError:
            # A newer worker may know events that we do not.
            log.warning("a wake-up message makes no sense", text=message[:200])
            return
        if event_type.is_terminal:
            self._wake(job_id)
            self._on_end(job_id, event_type)

    async def _poll(self) -> None:
        await asyncio.sleep(self._poll_seconds)
        await self._note_refusals()
        if not self._watches:
            return
        states = await self._queue.states(list(self._watches))
        for job_id, state in states.items():
            if state is None or state.is_terminal:
                self._wake(job_id)

    async def _note_refusals(self) -> None:
        try:
            # Beside writes, a server whose disk is full refuses this.
            await self._queue.ping()
        except redis.ResponseError as error:
            if self._refused_since is None:
                log.warning("Redis refuses writes", error=str(error))
                self._refused_since = time.monotonic()
        else:
            self._refused_since = None
        if self.is_refused:
            for job_id in self._watches:
                self._wake(job_id)
