"""Reads jobs back: RQ's hash, its result and the last event, as one record."""

from datetime import UTC, datetime
from typing import Final

import redis.asyncio
from rq.job import Job
from rq.results import Result
from rq.serializers import JSONSerializer

from koala.clock import in_seconds
from koala.events import EventType, JobEvent, decode
from koala.keys import Keys
from koala.scripts import ATTEMPTS
from koala.spec import JobError, JobRecord, JobResult, JobSpec, Progress
from koala.states import JobState, from_rq

# Previews of all images of a job can follow what tells where it stands, even its end.
_LAST_EVENTS: Final = 12


class Records:
    """What is known of jobs.

    Args:
        connection: An asyncio client that returns bytes.
        keys: Keys of the queue.
    """

    def __init__(self, connection: redis.asyncio.Redis, keys: Keys) -> None:
        self._redis = connection
        self._keys = keys

    async def read(self, job_ids: list[str]) -> list[JobRecord | None]:
        """Jobs as they stand now, in one round trip; ``None`` for one that does not exist."""
        if not job_ids:
            return []
        async with self._redis.pipeline(transaction=False) as pipeline:
            pipeline.time()
            for job_id in job_ids:
                pipeline.hgetall(self._keys.job(job_id))
                pipeline.ttl(self._keys.job(job_id))
                pipeline.lpos(self._keys.pending, job_id)
                pipeline.xrevrange(self._keys.results(job_id), count=1)
                pipeline.xrevrange(self._keys.events(job_id), count=_LAST_EVENTS)
            now, *replies = await pipeline.execute()
        return [
            self._record(in_seconds(now), job_id, *replies[5 * i : 5 * i + 5])
            if replies[5 * i]
            else None
            for i, job_id in enumerate(job_ids)
        ]

    def _record(
        self,
        now: float,
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
        told = (decode(*entry) for entry in events)
        last = next((e for e in told if e is not None and e.type is not EventType.PREVIEW), None)
        latest = self._latest_result(job_id, results)
        return JobRecord(
            id=job_id,
            state=state.value,
            spec=spec,
            created_at=job.created_at,
            started_at=job.started_at if state is not JobState.QUEUED else None,
            ended_at=job.ended_at if state.is_terminal else None,
            expires_at=datetime.fromtimestamp(now + ttl, UTC) if ttl > 0 else None,
            # Popped but not claimed yet, it is nobody's turn before its own.
            position=(position or 0) if state is JobState.QUEUED else None,
            progress=_progress(spec, state, last),
            attempts=int(raw.get(ATTEMPTS.encode(), 0)),
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
        return Progress.told(last.data)
    return Progress(step=0, steps=spec.total_steps)


def _error(result: Result | None, last: JobEvent | None) -> JobError:
    if last is not None and last.type is EventType.FAILED:
        return JobError.model_validate(last.data["error"])
    # RQ's own clean-up failed the job, so no worker of ours could tell why.
    trace = (result.exc_string or "") if result is not None else ""
    return JobError(
        message=trace.strip().rsplit("\n", 1)[-1] or "The job was given up.", code="abandoned"
    )
