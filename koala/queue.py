"""The gateway's side of the queue: submit, cancel, and what is known of a job.

Jobs are RQ's own (hash, list, registries, result stream), so ``rq info`` and rq-dashboard tell
the truth; they are built without I/O and admitted by a script, because RQ's enqueue knows no bound
and no order but that of arrival, and would need a thread per call.
"""

import re
from dataclasses import dataclass
from typing import Final, cast
from uuid import uuid4

import redis.asyncio
from rq.job import Job, JobStatus
from rq.serializers import JSONSerializer
from rq.utils import as_text, utcparse

from koala.cancelling import Cancelled, Cancelling
from koala.clock import AsyncRedisClock, in_seconds
from koala.errors import IdempotencyConflict, JobNotFound, QueueFull
from koala.keys import GENERATE, Keys
from koala.records import Records
from koala.settings import Settings
from koala.spec import JobRecord, JobSpec, Progress
from koala.states import JobState, from_rq
from koala.submission import Answer, Idempotency, Outcome, Submission
from koala.trail import NO_TRAIL, Trail

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
    """

    def __init__(self, connection: redis.asyncio.Redis, settings: Settings) -> None:
        self._redis = connection
        self._settings = settings
        self.keys = Keys(settings.queue)
        self.clock = AsyncRedisClock(connection)
        self._submission = Submission(connection, settings, self.keys)
        self._cancelling = Cancelling(connection, settings, self.keys, self.clock)
        self._records = Records(connection, self.keys)

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
        """
        [record] = await self._records.read([job_id])
        if record is None:
            raise _not_found(job_id)
        return record

    async def newest(
        self, limit: int, after: str | None = None, owner: str | None = None
    ) -> list[JobRecord]:
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
        found: list[JobRecord] = []
        while len(found) < limit:
            stop = start + limit - len(found) - 1
            entries = cast(list[bytes], await self._redis.zrevrange(index, start, stop))
            if not entries:
                break
            ids = [entry.decode() for entry in entries]
            records = await self._records.read(ids)
            found += [record for record in records if record is not None]
            expired = [i for i, record in zip(ids, records, strict=True) if record is None]
            if expired:
                await self._redis.zrem(index, *expired)
            start += len(ids) - len(expired)
        return found

    async def states(self, job_ids: list[str]) -> dict[str, JobState | None]:
        """The bare states of many jobs, in one round trip; ``None`` for one that does not exist."""
        async with self._redis.pipeline(transaction=False) as pipeline:
            for job_id in job_ids:
                pipeline.hget(self.keys.job(job_id), "status")
            replies = await pipeline.execute()
        return {
            job_id: from_rq(JobStatus(status.decode())) if status else None
            for job_id, status in zip(job_ids, replies, strict=True)
        }

    async def waiting(self, limit: int) -> list[JobRecord]:
        """Of the jobs in the queue at most ``limit``, the next one first."""
        ids = cast(list[bytes], await self._redis.lrange(self.keys.pending, 0, limit - 1))
        return await self._read(ids)

    async def held(self, limit: int) -> list[JobRecord]:
        """Of the jobs that workers hold at most ``limit``, the one taken first first."""
        ids = cast(list[bytes], await self._redis.zrange(self.keys.leases, 0, -1))
        records = await self._read(ids)
        return sorted(records, key=lambda record: record.started_at or record.created_at)[:limit]

    async def backlog(self) -> Backlog:
        """How much is unfinished, in numbers."""
        async with self._redis.pipeline(transaction=False) as pipeline:
            pipeline.lrange(self.keys.pending, 0, -1)
            pipeline.zcard(self.keys.leases)
            pipeline.time()
            ids, held, now = await pipeline.execute()
        created = await self._redis.zmscore(self.keys.index, ids) if ids else []
        ages = [in_seconds(now) - float(moment) for moment in created if moment is not None]
        return Backlog(len(ids), held, max(0.0, *ages) if ages else None)

    async def depth(self) -> int:
        """How many jobs are waiting."""
        return int(await self._redis.llen(self.keys.pending))

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
        times = [utcparse(as_text(time)) for time in oldest if time is not None]
        return max(0.0, in_seconds(now) - times[0].timestamp()) if times else 0.0

    async def ping(self) -> None:
        """Check that Redis answers.

        Raises:
            redis.RedisError: It does not.
        """
        await self._redis.ping()

    async def _read(self, ids: list[bytes]) -> list[JobRecord]:
        records = await self._records.read([job_id.decode() for job_id in ids])
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


def _not_found(job_id: str) -> JobNotFound:
    return JobNotFound(
        f"There is no job {job_id[:80]!r}: it never was, or it has expired.", param="id"
    )
