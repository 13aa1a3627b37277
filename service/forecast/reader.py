"""Reads where things stand: what waits, what is held by whom and how far it is."""

import json
import zlib
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any, Final, TypeGuard

import redis.asyncio
from rq.utils import as_text, utcparse

from koala.clock import in_seconds
from koala.events import EventType, JobEvent
from koala.keys import Keys
from koala.spec import JobSpec
from koala.unreadable import Unreadables, replies
from koala.workers import WorkerAd
from service.forecast.load import WINDOW_SECONDS, arrival_rate, share_returning
from service.forecast.pace import Pace
from service.forecast.situation import Lane, Situation, Work

# As many of the newest jobs say what those look like that are to come.
_SAMPLE: Final = 16
# As many of those that ended last say who comes back.
_ENDED: Final = 8
# Jobs whose work is remembered; it never changes.
_REMEMBERED: Final = 4096


class SituationReader:
    """Reads situations in two round trips.

    Args:
        connection: An asyncio client that returns bytes.
        keys: Keys of the queue.
        unreadables: Told of events that cannot be read.
    """

    def __init__(
        self, connection: redis.asyncio.Redis, keys: Keys, unreadables: Unreadables
    ) -> None:
        self._redis = connection
        self._keys = keys
        self._unreadables = unreadables
        self._works: OrderedDict[str, Work] = OrderedDict()

    def remember(self, job_id: str, spec: JobSpec) -> Work:
        """Note a job's work, which spares looking it up."""
        work = self._works[job_id] = Work.of(job_id, spec)
        while len(self._works) > _REMEMBERED:
            self._works.popitem(last=False)
        return work

    async def read(self, ads: Iterable[WorkerAd]) -> Situation:
        """The situation of the live workers ``ads`` and their queue.

        Raises:
            redis.RedisError: Redis cannot be reached.
        """
        keys = self._keys
        async with self._redis.pipeline(transaction=False) as pipeline:
            pipeline.time()
            pipeline.lrange(keys.intermediate, 0, -1)
            pipeline.lrange(keys.pending, 0, -1)
            pipeline.zrange(keys.leases, 0, -1)
            pipeline.zrevrange(keys.index, 0, _SAMPLE - 1, withscores=True)
            pipeline.zrevrange(keys.finished, 0, _ENDED - 1)
            now, popped, pending, leased, newest, done = await pipeline.execute()
        now = in_seconds(now)
        queue = [_name(job_id) for job_id in (*reversed(popped), *pending)]
        held = [_name(job_id) for job_id in leased]
        sample = [_name(job_id) for job_id, _ in newest]
        missing = [job_id for job_id in {*queue, *held, *sample} if job_id not in self._works]
        async with self._redis.pipeline(transaction=False) as pipeline:
            window = (now - WINDOW_SECONDS, "+inf")
            pipeline.zcount(keys.index, *window)
            pipeline.zrangebyscore(keys.index, *window, start=0, num=1, withscores=True)
            for job_id in done:
                pipeline.hget(keys.job(_name(job_id)), "ended_at")
            for job_id in missing:
                pipeline.hget(keys.job(job_id), "data")
            for job_id in held:
                pipeline.hmget(keys.job(job_id), "worker_name", "started_at")
                pipeline.xrevrange(keys.events(job_id), count=1)
            came, first, *found = await replies(pipeline)
        ended, found = found[: len(done)], found[len(done) :]
        for job_id, data in zip(missing, found, strict=False):
            self._learn(job_id, data)
        states = found[len(missing) :]
        holdings = [
            _Holding(
                job_id,
                states[2 * i],
                self._unreadables.events(job_id, states[2 * i + 1]),
            )
            for i, job_id in enumerate(held)
        ]
        holdings.sort(key=lambda holding: holding.started_at)
        taken = set(held)
        returning = share_returning(
            [moment for moment in map(_moment, ended) if moment is not None],
            [came_at for _, came_at in newest],
        )
        span = max(0.0, now - first[0][1]) if first else 0.0
        return Situation(
            lanes=tuple(self._lane(ad, holdings, now) for ad in ads if ad.sizes),
            queue=self._known(job_id for job_id in queue if job_id not in taken),
            arrivals_per_second=arrival_rate(came, span, returning),
            arrivals=self._known(sample),
            returning=returning,
        )

    def _lane(self, ad: WorkerAd, holdings: "list[_Holding]", now: float) -> Lane:
        pace = Pace(ad.sizes, ad.store_seconds)
        own = [holding for holding in holdings if holding.worker == ad.name]
        held = (
            holding.left(self._works[holding.job_id], now)
            for holding in own
            if holding.job_id in self._works
        )
        return Lane(ad.name, pace, tuple(held))

    def _known(self, job_ids: Iterable[str]) -> tuple[Work, ...]:
        return tuple(self._works[job_id] for job_id in job_ids if job_id in self._works)

    def _learn(self, job_id: str, data: object) -> None:
        spec = _spec(data) if isinstance(data, bytes) else None
        if spec is not None:
            self.remember(job_id, spec)


def _spec(data: bytes) -> JobSpec | None:
    """The spec in RQ's data of a job; ``None`` if the job is none of ours."""
    try:
        _, _, _, arguments = json.loads(zlib.decompress(data))
        return JobSpec.model_validate(arguments["spec"])
    except (zlib.error, ValueError, TypeError, KeyError):
        # Whoever shares the queue may put anything into it; a worker will refuse that.
        return None


def _name(entry: bytes) -> str:
    # What is no text is no job either.
    return entry.decode(errors="replace")


def _are_steps(done: Any, images: int) -> TypeGuard[list[int]]:
    is_list = isinstance(done, list) and len(done) == images
    return is_list and all(isinstance(each, int) for each in done)


def _moment(text: Any) -> float | None:
    try:
        return utcparse(as_text(text)).timestamp() if isinstance(text, bytes) else None
    except ValueError:
        return None


class _Holding:
    """A job that a worker holds."""

    def __init__(self, job_id: str, fields: Any, last: list[JobEvent]) -> None:
        worker, started_at = fields if isinstance(fields, list) else (None, None)
        self.job_id = job_id
        self.worker = (worker or b"").decode(errors="replace")
        # Times in RQ's form sort as they are.
        self.started_at: bytes = started_at or b""
        self._event = last[0] if last else None

    def left(self, work: Work, now: float) -> Work:
        """What is left of its ``work``."""
        event = self._event
        # A worker of an older version does not tell of single images.
        done = None if event is None else event.data.get("image_steps")
        if event is None or not _are_steps(done, len(work.calls)) or not event.data.get("steps"):
            return work
        # Of a preview, the steps are one image's.
        steps = event.data["steps"] / (len(done) if event.type is EventType.STEP else 1)
        age = max(0.0, now - event.milliseconds / 1000)
        return work.after([each / steps for each in done], age)
