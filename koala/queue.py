"""The gateway's side of the queue: submit, cancel, and what is known of a job.

Jobs are RQ's own (hash, list, registries, result stream), so ``rq info`` and rq-dashboard tell
the truth; they are built without I/O and admitted by a script, because RQ's enqueue knows no bound
and no order but that of arrival, and would need a thread per call.
"""

import re
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, cast
from uuid import uuid4

import redis.asyncio
from rq.job import Job, JobStatus
from rq.serializers import JSONSerializer
from rq.utils import as_text, utcparse

from koala.cancelling import Cancelled, Cancelling
from koala.clock import AsyncRedisClock, in_seconds
from koala.errors import IdempotencyConflict, JobNotFound, JobUnreadable, QueueFull
from koala.keys import GENERATE, Keys
from koala.records import Records, UnreadableJob
from koala.settings import Settings
from koala.spec import JobRecord, JobSpec, Progress
from koala.states import JobState, from_rq
from koala.submission import Answer, Idempotency, Outcome, Submission
from koala.trail import NO_TRAIL, Trail
from koala.unreadable import Unreadables, replies

JOB_ID: Final = re.compile(r"job_[0-9a-f]{32}")

# Entries looked at for one with a date: what others put into the list may lack it, and sorts first.
_UNREADABLE: Final = 8


def new_job_id() -> str:
    """An id for a job that nobody can guess."""
    return f"job_{uuid4().hex}"


@dataclass(frozen=True, slots=True)
class Submitted:
    """A job in the queue; ``is_new`` is false for the one an ``Idempotency-Key`` stood for."""

    record: JobRecord
    is_new: bool


@dataclass(frozen=True, slots=True)
class Backlog:
    """Jobs in the queue, jobs that workers hold, and how long ago the oldest in the queue came."""

    queued: int
    held: int
    oldest_seconds: float | None


class JobQueue:
    """Admits jobs and reads them back.

    Args:
        connection: An asyncio client that returns bytes.
        settings: Bounds and lifetimes.
        unreadables: Told of stored jobs that cannot be read.
    """

    def __init__(
        self,
        connection: redis.asyncio.Redis,
        settings: Settings,
        unreadables: Unreadables | None = None,
    ) -> None:
        self._redis = connection
        self._settings = settings
        self.keys = Keys(settings.queue)
        self.clock = AsyncRedisClock(connection)
        self._submission = Submission(connection, settings, self.keys)
        self._cancelling = Cancelling(connection, settings, self.keys, self.clock)
        self._records = Records(connection, self.keys, unreadables or Unreadables())

    async def submit(
        self,
        spec: JobSpec,
        job_id: str | None = None,
        *,
        owner_limit: int | None = None,
        idempotency: Idempotency | None = None,
        kept: bool = False,
        trail: Trail = NO_TRAIL,
    ) -> Submitted:
        """Admit a job: behind its owner's other ones, and behind those of higher priority.

        Args:
            spec: The job.
            job_id: An id of ``new_job_id`` for callers who watch the job from before it exists.
            owner_limit: Most jobs of its owner that may wait.
            idempotency: A client's key: who comes again with it gets the job of the first time.
            kept: The job is to go on when the client that sent it hangs up; a job with an
                ``idempotency`` does so anyway.
            trail: What the worker's log lines and spans are to share with the request's.

        Raises:
            QueueFull: As many jobs are waiting as may, in all or of this owner.
            IdempotencyConflict: The key stands for another body.
        """
        await self.clock.refresh()
        job = self._build(spec, job_id or new_job_id(), trail)
        answer = await self._submission.admit(
            job, spec, owner_limit=owner_limit, idempotency=idempotency, kept=kept
        )
        if answer.known is not None:
            return Submitted(await self._known(answer.known, idempotency), is_new=False)
        if answer.outcome is not Outcome.ADMITTED:
            raise self._full(answer, owner_limit)
        record = JobRecord(
            id=job.id,
            state=JobState.QUEUED.value,
            spec=spec,
            created_at=job.created_at,
            position=answer.count,
            progress=Progress(step=0, steps=spec.total_steps),
        )
        return Submitted(record, is_new=True)

    async def cancel(self, job_id: str, *, if_abandoned: bool = False) -> Cancelled:
        """Cancel a waiting job; ask the worker of a running one to stop it.

        Args:
            job_id: The job.
            if_abandoned: Spare it if anybody beside its first client knows it.

        Raises:
            JobNotFound: There is no such job, or it has expired.
        """
        outcome = await self._cancelling.cancel(job_id, if_abandoned=if_abandoned)
        if outcome is Cancelled.MISSING:
            raise _not_found(job_id)
        return outcome

    async def keep(self, job_id: str) -> None:
        """Note that somebody beside its first client knows a job: that one may hang up now."""
        await self._cancelling.keep(job_id)

    async def get(self, job_id: str) -> JobRecord:
        """A job as it stands now, in one round trip.

        Raises:
            JobNotFound: There is no such job, or it has expired.
            JobUnreadable: What is stored of it is of another version, or damaged.
        """
        [record] = await self._records.read([job_id])
        if record is None:
            raise _not_found(job_id)
        if isinstance(record, UnreadableJob):
            raise JobUnreadable(
                f"The job {job_id} cannot be read: another version of this software left it, or "
                f"it is damaged ({record.reason}).",
                owner=record.owner,
            )
        return record

    async def newest(
        self, limit: int, after: str | None = None, owner: str | None = None
    ) -> list[JobRecord | UnreadableJob]:
        """The newest jobs first, at most ``limit``, beginning behind the job ``after``.

        ``owner`` leaves out all jobs but that owner's.

        Raises:
            JobNotFound: ``after`` is no job.
        """
        index = self.keys.index if owner is None else self.keys.index_of(owner)
        start = 0
        if after is not None:
            rank = cast(int | None, await self._redis.zrevrank(index, after))
            if rank is None:
                raise JobNotFound(f"There is no job {after[:80]!r} to list from.", param="after")
            start = rank + 1
        found: list[JobRecord | UnreadableJob] = []
        while len(found) < limit:
            stop = start + limit - len(found) - 1
            entries = cast(list[bytes], await self._redis.zrevrange(index, start, stop))
            if not entries:
                break
            records = await self._records.read([_name(entry) for entry in entries])
            found += [record for record in records if record is not None]
            expired = [entry for entry, job in zip(entries, records, strict=True) if job is None]
            if expired:
                await self._redis.zrem(index, *expired)
            start += len(entries) - len(expired)
        return found

    async def states(self, job_ids: list[str]) -> dict[str, JobState | None]:
        """The bare states of many jobs, in one round trip.

        ``None`` for one that does not exist or has a status that nothing here knows.
        """
        async with self._redis.pipeline(transaction=False) as pipeline:
            for job_id in job_ids:
                pipeline.hget(self.keys.job(job_id), "status")
            statuses = await replies(pipeline)
        return {job_id: _state(status) for job_id, status in zip(job_ids, statuses, strict=True)}

    async def waiting(self, limit: int) -> list[JobRecord | UnreadableJob]:
        """Of the jobs that wait at most ``limit``, the next one first.

        Those come before all others that are left to newer workers.
        """
        async with self._redis.pipeline(transaction=False) as pipeline:
            pipeline.zrange(self.keys.unsupported, 0, limit - 1)
            pipeline.lrange(self.keys.pending, 0, limit - 1)
            set_aside, pending = await pipeline.execute()
        return await self._read([*set_aside, *pending][:limit])

    async def held(self, limit: int) -> list[JobRecord | UnreadableJob]:
        """Of the jobs that workers hold at most ``limit``, the one taken first first."""
        ids = cast(list[bytes], await self._redis.zrange(self.keys.leases, 0, -1))
        return sorted(await self._read(ids), key=_taken_at)[:limit]

    async def backlog(self) -> Backlog:
        """How much is unfinished, in numbers."""
        async with self._redis.pipeline(transaction=False) as pipeline:
            pipeline.zrange(self.keys.unsupported, 0, -1)
            pipeline.lrange(self.keys.pending, 0, -1)
            pipeline.zcard(self.keys.leases)
            pipeline.time()
            set_aside, pending, held, now = await pipeline.execute()
        ids = [*set_aside, *pending]
        created = await self._redis.zmscore(self.keys.index, ids) if ids else []
        ages = [in_seconds(now) - float(moment) for moment in created if moment is not None]
        return Backlog(len(ids), held, max(0.0, *ages) if ages else None)

    async def depth(self) -> int:
        """How many jobs are waiting."""
        return int(await self._redis.llen(self.keys.pending)) + await self.unsupported()

    async def unsupported(self) -> int:
        """How many of them are left to newer workers."""
        return int(await self._redis.zcard(self.keys.unsupported))

    async def oldest_seconds(self) -> float:
        """How long the job has waited that waits longest, in seconds; 0 where none waits."""
        # By the server: who is next says nothing of age, and the whole queue may be long.
        created = self.keys.job("*->created_at")
        async with self._redis.pipeline(transaction=False) as pipeline:
            pipeline.time()
            pipeline.sort(
                self.keys.pending, start=0, num=_UNREADABLE, by=created, get=[created], alpha=True
            )
            now, oldest = await pipeline.execute()
        for text in oldest:
            with suppress(ValueError):
                if text is not None:
                    return max(0.0, in_seconds(now) - utcparse(as_text(text)).timestamp())
        return 0.0

    async def ping(self) -> None:
        """Check that Redis answers.

        Raises:
            redis.RedisError: It does not.
        """
        await self._redis.ping()

    async def _read(self, ids: list[bytes]) -> list[JobRecord | UnreadableJob]:
        records = await self._records.read([_name(job_id) for job_id in ids])
        return [record for record in records if record is not None]

    async def _known(self, known: tuple[str, str], idempotency: Idempotency | None) -> JobRecord:
        job_id, digest = known
        if idempotency is not None and digest != idempotency.body_digest:
            raise IdempotencyConflict(
                "The `Idempotency-Key` was used before, with another body: a key stands for one "
                "request.",
                param="Idempotency-Key",
            )
        return await self.get(job_id)

    def _full(self, answer: Answer, owner_limit: int | None) -> QueueFull:
        if answer.outcome is Outcome.OWNER_FULL:
            return QueueFull(
                f"{answer.count} jobs of this API key are waiting, and no more than {owner_limit} "
                "may.",
                waiting=answer.count,
                code="too_many_queued",
            )
        return QueueFull(
            f"The queue is full: {answer.count} jobs are waiting, and no more than "
            f"{self._settings.max_queued} may.",
            waiting=answer.count,
        )

    def _build(self, spec: JobSpec, job_id: str, trail: Trail) -> Job:
        job = Job.create(
            func=GENERATE,
            kwargs={"spec": spec.model_dump(mode="json")},
            id=job_id,
            # Only stored on the object: nothing below talks to Redis.
            connection=self._redis,  # type: ignore[arg-type]
            description=f"{spec.n} x {spec.width}x{spec.height}: {spec.prompt[:60]}",
            timeout=self._settings.job_timeout,
            result_ttl=self._settings.result_ttl,
            failure_ttl=self._settings.result_ttl,
            origin=self._settings.queue,
            status=JobStatus.QUEUED,
            meta=trail.meta,
            serializer=JSONSerializer,
        )
        job.created_at = job.enqueued_at = self.clock.now()
        return job


def _name(entry: bytes) -> str:
    # What is no text is no job either.
    return entry.decode(errors="replace")


def _state(status: object) -> JobState | None:
    try:
        return from_rq(JobStatus(status.decode())) if isinstance(status, bytes) else None
    except ValueError:
        return None


def _taken_at(job: JobRecord | UnreadableJob) -> datetime:
    if isinstance(job, UnreadableJob):
        return datetime.max.replace(tzinfo=UTC)
    return job.started_at or job.created_at


def _not_found(job_id: str) -> JobNotFound:
    return JobNotFound(
        f"There is no job {job_id[:80]!r}: it never was, or it has expired.", param="id"
    )
