"""The gateway's side of the queue: bounded admission and what is known of a job.

Jobs are RQ's own (hash, list, registries, result stream), so ``rq info`` and rq-dashboard tell
the truth; they are built without I/O and admitted by one script, because RQ's enqueue knows no
bound and would need a thread per call.
"""

import re
import time
from datetime import UTC, datetime, timedelta
from typing import Any, Final, cast
from uuid import uuid4

import redis.asyncio
from rq.job import Job, JobStatus
from rq.results import Result
from rq.serializers import JSONSerializer

from koala.errors import JobNotFound, QueueFull
from koala.events import EventType, JobEvent, decode, encode
from koala.keys import GENERATE, Keys
from koala.settings import Settings
from koala.spec import JobError, JobRecord, JobResult, JobSpec, Progress
from koala.states import JobState, from_rq

# Admission in one step: two callers can never both take the last place.
# KEYS: job hash, pending list, intermediate list, index, rq's set of queues, event stream,
#       the owner's index
# ARGV: limit, job id, unix time, event ttl, event type, event data, wake channel,
#       then field, value, ... of the job hash
# Returns {1, jobs ahead} when admitted, {0, jobs waiting} when full, {2, 0} when the id exists.
_ADMIT: Final = """
if redis.call('EXISTS', KEYS[1]) == 1 then return {2, 0} end
local waiting = redis.call('LLEN', KEYS[2])
if waiting + redis.call('LLEN', KEYS[3]) >= tonumber(ARGV[1]) then return {0, waiting} end
redis.call('HSET', KEYS[1], unpack(ARGV, 8))
redis.call('ZADD', KEYS[4], ARGV[3], ARGV[2])
redis.call('ZADD', KEYS[7], ARGV[3], ARGV[2])
redis.call('EXPIRE', KEYS[7], ARGV[4])
redis.call('SADD', KEYS[5], KEYS[2])
redis.call('XADD', KEYS[6], '*', 'type', ARGV[5], 'data', ARGV[6])
redis.call('EXPIRE', KEYS[6], ARGV[4])
redis.call('RPUSH', KEYS[2], ARGV[2])
redis.call('PUBLISH', ARGV[7], ARGV[2] .. ' ' .. ARGV[5])
return {1, waiting}
"""

_ADMITTED, _FULL = 1, 0

JOB_ID: Final = re.compile(r"job_[0-9a-f]{32}")


def new_job_id() -> str:
    """An id for a job that nobody can guess."""
    return f"job_{uuid4().hex}"


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
        self._admit = connection.register_script(_ADMIT)

    async def submit(self, spec: JobSpec, job_id: str | None = None) -> JobRecord:
        """Admit a job at the end of the queue.

        Args:
            spec: The job.
            job_id: An id of ``new_job_id`` for callers who watch the job from before it exists.

        Raises:
            QueueFull: ``max_queued`` jobs are waiting already.
        """
        job = self._build(spec, job_id or new_job_id())
        fields: list[Any] = [part for item in job.to_dict().items() for part in item]
        queued = encode(JobEvent(EventType.QUEUED, {}))
        outcome, waiting = await self._admit(
            keys=[
                self.keys.job(job.id),
                self.keys.pending,
                self.keys.intermediate,
                self.keys.index,
                "rq:queues",
                self.keys.events(job.id),
                self.keys.index_of(spec.owner),
            ],
            args=[
                self._settings.max_queued,
                job.id,
                time.time(),
                self._event_ttl,
                queued["type"],
                queued["data"],
                self.keys.wake,
                *fields,
            ],
        )
        if outcome == _FULL:
            raise QueueFull(
                f"The queue is full: {waiting} jobs are waiting, and no more than "
                f"{self._settings.max_queued} may.",
                retry_after=5,
            )
        if outcome != _ADMITTED:
            # The reply to our first try got lost and redis-py sent the script again.
            return await self.get(job.id)
        return JobRecord(
            id=job.id,
            state=JobState.QUEUED.value,
            spec=spec,
            created_at=job.created_at,
            position=waiting,
            progress=Progress(step=0, steps=spec.total_steps),
        )

    async def get(self, job_id: str) -> JobRecord:
        """A job as it stands now, in one round trip.

        Raises:
            JobNotFound: There is no such job, or it has expired.
        """
        [record] = await self._read([job_id])
        if record is None:
            raise JobNotFound(
                f"There is no job {job_id[:80]!r}: it never was, or it has expired.", param="id"
            )
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
        ids = cast(list[bytes], await self._redis.zrevrange(index, start, start + limit - 1))
        records = await self._read([job_id.decode() for job_id in ids])
        return [record for record in records if record is not None]

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

    async def depth(self) -> int:
        """How many jobs are waiting."""
        return int(await self._redis.llen(self.keys.pending))

    async def ping(self) -> None:
        """Check that Redis answers.

        Raises:
            redis.RedisError: It does not.
        """
        await self._redis.ping()

    @property
    def _event_ttl(self) -> int:
        # A stream lives as long as the job can still run plus as long as its result is kept.
        return self._settings.result_ttl + self._settings.job_timeout

    def _build(self, spec: JobSpec, job_id: str) -> Job:
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
            serializer=JSONSerializer,
        )
        job.enqueued_at = job.created_at
        return job

    async def _read(self, job_ids: list[str]) -> list[JobRecord | None]:
        if not job_ids:
            return []
        async with self._redis.pipeline(transaction=False) as pipeline:
            for job_id in job_ids:
                pipeline.hgetall(self.keys.job(job_id))
                pipeline.ttl(self.keys.job(job_id))
                pipeline.lpos(self.keys.pending, job_id)
                pipeline.xrevrange(self.keys.results(job_id), count=1)
                pipeline.xrevrange(self.keys.events(job_id), count=1)
            replies = await pipeline.execute()
        return [
            self._record(job_id, *replies[5 * i : 5 * i + 5]) if replies[5 * i] else None
            for i, job_id in enumerate(job_ids)
        ]

    def _record(
        self,
        job_id: str,
        raw: dict[bytes, bytes],
        ttl: int,
        position: int | None,
        results: list[tuple[bytes, dict[bytes, bytes]]],
        events: list[tuple[bytes, dict[bytes, bytes]]],
    ) -> JobRecord:
        job = Job(job_id, connection=self._redis, serializer=JSONSerializer)  # type: ignore[arg-type]
        job.restore(raw)
        spec = JobSpec.model_validate(job.kwargs["spec"])
        state = from_rq(job.get_status(refresh=False))
        last = decode(*events[0]) if events else None
        latest = self._latest_result(job_id, results)
        return JobRecord(
            id=job_id,
            state=state.value,
            spec=spec,
            created_at=job.created_at,
            started_at=job.started_at if state is not JobState.QUEUED else None,
            ended_at=job.ended_at if state.is_terminal else None,
            expires_at=datetime.now(UTC) + timedelta(seconds=ttl) if ttl > 0 else None,
            position=position if state is JobState.QUEUED else None,
            progress=_progress(spec, state, last),
            attempts=int(raw.get(b"koala_attempts", 0)),
            worker=job.worker_name if state is not JobState.QUEUED else None,
            result=(
                JobResult.model_validate(latest.return_value)
                if latest is not None and state is JobState.COMPLETED
                else None
            ),
            error=_error(latest, last) if state is JobState.FAILED else None,
        )

    def _latest_result(
        self, job_id: str, results: list[tuple[bytes, dict[bytes, bytes]]]
    ) -> Result | None:
        if not results:
            return None
        result_id, payload = results[0]
        return Result.restore(
            job_id,
            result_id.decode(),
            payload,
            connection=self._redis,  # type: ignore[arg-type]
            serializer=JSONSerializer,
        )


def _progress(spec: JobSpec, state: JobState, last: JobEvent | None) -> Progress:
    if state is JobState.COMPLETED:
        return Progress(step=spec.total_steps, steps=spec.total_steps)
    if last is not None and last.type is EventType.STEP:
        return Progress.model_validate(last.data)
    return Progress(step=0, steps=spec.total_steps)


def _error(result: Result | None, last: JobEvent | None) -> JobError:
    if last is not None and last.type is EventType.FAILED:
        return JobError.model_validate(last.data["error"])
    # RQ's own clean-up failed the job, so no worker of ours could tell why.
    trace = (result.exc_string or "") if result is not None else ""
    return JobError(
        message=trace.strip().rsplit("\n", 1)[-1] or "The job was given up.", code="abandoned"
    )
