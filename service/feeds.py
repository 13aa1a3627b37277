"""The events of jobs, for those who watch: one reader per process, however many listen.

Each job that is watched has one feed, read from its stream in Redis and kept as long as somebody
listens; a listener walks along it at its own pace. Messages on the wake-up channels say which feeds
to read on; all of them are read on now and then anyway, for messages can get lost.
"""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from typing import Final

import redis
import redis.asyncio
import structlog

from koala.events import MAX_EVENTS, EventType, JobEvent
from koala.keys import Keys
from koala.single_flight import SingleFlight
from koala.unreadable import Unreadables, replies
from service.ending import end

log = structlog.get_logger()

_POLL_SECONDS: Final = 1.0
_BACKOFF_SECONDS: Final = 0.5
# As many as a job's stream in Redis keeps, and as many positions between them.
_KEPT_EVENTS: Final = 2 * MAX_EVENTS
_QUEUED: Final = frozenset({EventType.QUEUED, EventType.REQUEUED, EventType.POSITION})


@dataclass(slots=True, eq=False)
class _Feed:
    """The newest events of a job, oldest first.

    ``dropped`` counts the older ones that were let go; ``last_id`` is the id of the newest event
    that was read from the stream. ``first_read`` is shared by all who begin to listen.
    """

    job_id: str
    first_read: SingleFlight[None]
    events: deque[JobEvent] = field(default_factory=deque)
    dropped: int = 0
    last_id: str = "0-0"
    is_read: bool = False
    listeners: int = 0
    grown: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def has_ended(self) -> bool:
        return bool(self.events) and self.events[-1].type.is_terminal

    @property
    def is_queued(self) -> bool:
        return bool(self.events) and self.events[-1].type in _QUEUED

    @property
    def position(self) -> int | None:
        last = self.events[-1]
        return int(last.data["position"]) if last.type is EventType.POSITION else None

    def since(self, known: int) -> tuple[list[JobEvent], int]:
        """The kept events after the first ``known`` ones, and how many are known then."""
        news = list(islice(self.events, max(0, known - self.dropped), None))
        return news, self.dropped + len(self.events)

    def known_to(self, after: str) -> int:
        """How many events a listener knows whose last one has the id ``after``."""
        last = _order(after)
        stored = ((i, event) for i, event in enumerate(self.events, 1) if event.id)
        return self.dropped + max((i for i, event in stored if _order(event.id) <= last), default=0)

    def grow(self, events: list[JobEvent]) -> None:
        self.events += events
        self.last_id = next((event.id for event in reversed(events) if event.id), self.last_id)
        while len(self.events) > _KEPT_EVENTS:
            self.events.popleft()
            self.dropped += 1
        grown, self.grown = self.grown, asyncio.Event()
        grown.set()


class Feeds:
    """Feeds of the jobs of one queue.

    Args:
        connection: An asyncio client that returns bytes.
        keys: Keys of the queue.
        unreadables: Told of events that cannot be read.
    """

    def __init__(
        self, connection: redis.asyncio.Redis, keys: Keys, unreadables: Unreadables | None = None
    ) -> None:
        self._redis = connection
        self._keys = keys
        self._unreadables = unreadables or Unreadables()
        self._feeds: dict[str, _Feed] = {}
        self._reader: asyncio.Task[None] | None = None
        self._next_positions = 0.0
        self._is_dismissed = False

    @property
    def listeners(self) -> int:
        """How many listen right now."""
        return sum(feed.listeners for feed in self._feeds.values())

    async def follow(
        self, job_id: str, after: str | None = None, heartbeat: float = 15.0
    ) -> AsyncIterator[JobEvent | None]:
        """A job's events, the past ones first, up to and with its end; early if dismissed.

        Args:
            job_id: The job.
            after: The id of the last event that the listener knows.
            heartbeat: ``None`` comes whenever nothing else did for so many seconds.

        Raises:
            redis.RedisError: Redis cannot be reached at first; later outages are waited out.
        """
        feed = self._feeds.get(job_id) or self._add(job_id)
        feed.listeners += 1
        try:
            if not feed.is_read:
                # Before that nothing tells which events are behind ``after``.
                await feed.first_read.result()
            if self._reader is None:
                self._reader = asyncio.create_task(self._keep_reading())
            known = 0 if after is None else feed.known_to(after)
            while True:
                grown = feed.grown
                news, known = feed.since(known)
                for event in news:
                    yield event
                    if event.type.is_terminal:
                        return
                if feed.grown is not grown:
                    continue
                if self._is_dismissed:
                    return
                try:
                    async with asyncio.timeout(heartbeat):
                        await grown.wait()
                except TimeoutError:
                    yield None
        finally:
            feed.listeners -= 1
            if not feed.listeners:
                del self._feeds[job_id]

    def dismiss(self) -> None:
        """End all feeds, because the process is about to end."""
        self._is_dismissed = True
        for feed in self._feeds.values():
            feed.grow([])

    async def close(self) -> None:
        """Stop reading."""
        if self._reader is not None:
            await end(self._reader)

    def _add(self, job_id: str) -> _Feed:
        async def first_read() -> None:
            await self._read([feed])
            feed.is_read = True

        feed = self._feeds[job_id] = _Feed(job_id, SingleFlight(first_read))
        return feed

    async def _keep_reading(self) -> None:
        while self._feeds:
            try:
                await self._listen()
            except redis.RedisError as error:
                log.warning("the feeds have lost the queue", error=str(error))
                await asyncio.sleep(_BACKOFF_SECONDS)
            except Exception:
                # Nobody awaits this task: dying here would leave all listeners waiting.
                log.exception("the feeds stumbled")
                await asyncio.sleep(_BACKOFF_SECONDS)
        self._reader = None

    async def _listen(self) -> None:
        async with self._redis.pubsub(ignore_subscribe_messages=True) as subscription:
            await subscription.subscribe(self._keys.wake, self._keys.progress)
            # What came before the subscription has no message.
            await self._read(list(self._feeds.values()))
            next_full = time.monotonic() + _POLL_SECONDS
            while self._feeds:
                changed = await self._changed(subscription)
                feeds = list(self._feeds.values())
                is_due = time.monotonic() >= next_full
                if is_due:
                    next_full = time.monotonic() + _POLL_SECONDS
                await self._read([f for f in feeds if is_due or f.job_id in changed])
                await self._tell_positions()

    @staticmethod
    async def _changed(subscription: redis.asyncio.client.PubSub) -> set[str]:
        """Ids of jobs with news; none when nobody said anything for a while."""
        changed: set[str] = set()
        message = await subscription.get_message(timeout=_POLL_SECONDS)
        while message is not None:
            job_id, _, _ = message["data"].partition(b" ")
            changed.add(job_id.decode())
            message = await subscription.get_message(timeout=0.0)
        return changed

    async def _read(self, feeds: list[_Feed]) -> None:
        feeds = [feed for feed in feeds if not feed.has_ended]
        if not feeds:
            return
        asked = [feed.last_id for feed in feeds]
        async with self._redis.pipeline(transaction=False) as pipeline:
            for feed, last_id in zip(feeds, asked, strict=True):
                pipeline.xrange(self._keys.events(feed.job_id), min=f"({last_id}")
            found = await replies(pipeline)
        for feed, entries in zip(feeds, found, strict=True):
            # Another reader may have come first with some of them.
            known = _order(feed.last_id)
            events = self._unreadables.events(feed.job_id, entries)
            fresh = [event for event in events if _order(event.id) > known]
            if fresh:
                feed.grow(fresh)

    async def _tell_positions(self) -> None:
        queued = [feed for feed in self._feeds.values() if feed.is_queued]
        now = time.monotonic()
        if not queued or now < self._next_positions:
            return
        self._next_positions = now + _POLL_SECONDS
        async with self._redis.pipeline(transaction=False) as pipeline:
            for feed in queued:
                pipeline.lpos(self._keys.pending, feed.job_id)
            positions = await pipeline.execute()
        for feed, position in zip(queued, positions, strict=True):
            if position is not None and feed.is_queued and position != feed.position:
                feed.grow([JobEvent(EventType.POSITION, {"position": position})])


def _order(event_id: str) -> tuple[int, int]:
    milliseconds, _, sequence = event_id.partition("-")
    with suppress(ValueError):
        return int(milliseconds), int(sequence or 0)
    return 0, 0
