"""Reads jobs back: RQ's hash, its result and the last event, as one record."""

from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import redis
import redis.asyncio
from pydantic import ValidationError
from rq.job import Job
from rq.results import Result
from rq.serializers import JSONSerializer

from koala.clock import in_seconds
from koala.events import EventType, JobEvent
from koala.keys import Keys
from koala.scripts import ATTEMPTS, OWNER
from koala.spec import JobError, JobRecord, JobResult, JobSpec, Progress
from koala.states import JobState, from_rq
from koala.unreadable import Unreadables, replies

# Previews of all images of a job can follow what tells where it stands, even its end.
_LAST_EVENTS: Final = 12

_LOST_RESULT: Final = JobError(
    message="The job was completed, but its result is gone or cannot be read.", code="result_lost"
)


@dataclass(frozen=True, slots=True)
class UnreadableJob:
    """A job that cannot be shown: of another version, or damaged. ``owner`` as far as known."""

    id: str
    reason: str
    owner: str = ""


class Records:
    """What is known of jobs.

    Args:
        connection: An asyncio client that returns bytes.
        keys: Keys of the queue.
        unreadables: Told of what cannot be read.
    """

    def __init__(
        self, connection: redis.asyncio.Redis, keys: Keys, unreadables: Unreadables
    ) -> None:
        self._redis = connection
        self._keys = keys
        self._unreadables = unreadables

    async def read(self, job_ids: list[str]) -> list[JobRecord | UnreadableJob | None]:
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
            now, *found = await replies(pipeline)
        return [
            self._read(in_seconds(now), job_id, found[5 * i : 5 * i + 5])
            for i, job_id in enumerate(job_ids)
        ]

    def _read(self, now: float, job_id: str, found: list[Any]) -> JobRecord | UnreadableJob | None:
        raw, ttl, position, results, events = found
        if not raw:
            return None
        owner = b"" if isinstance(raw, redis.ResponseError) else raw.get(OWNER.encode(), b"")
        try:
            if isinstance(raw, redis.ResponseError):
                raise raw
            told = self._unreadables.events(job_id, events)
            return self._record(now, job_id, raw, ttl, position, results, told)
        except Exception as error:
            # Whatever RQ, JSON or pydantic make of it: the other jobs are to be seen.
            reason = _first_line(error)
            self._unreadables.note("job", job_id, reason)
            return UnreadableJob(job_id, reason, owner.decode(errors="replace"))

    def _record(
        self,
        now: float,
        job_id: str,
        raw: dict[bytes, bytes],
        ttl: int,
        position: int | None,
        results: Any,
        told: list[JobEvent],
    ) -> JobRecord:
        job = Job(job_id, connection=self._redis, serializer=JSONSerializer)  # type: ignore[arg-type]
        job.restore(raw)
        spec = JobSpec.model_validate(job.kwargs["spec"])
        state = from_rq(job.get_status(refresh=False))
        last = next((event for event in told if event.type is not EventType.PREVIEW), None)
        latest = self._latest_result(job_id, results)
        result = self._result(job_id, latest) if state is JobState.COMPLETED else None
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
            result=result,
            error=_error(state, result, latest, last),
        )

    def _result(self, job_id: str, latest: Result | None) -> JobResult | None:
        if latest is None:
            return None
        try:
            return JobResult.model_validate(latest.return_value)
        except ValidationError as error:
            self._unreadables.note("result", job_id, _first_line(error))
            return None

    def _latest_result(self, job_id: str, results: Any) -> Result | None:
        if not results:
            return None
        try:
            if isinstance(results, redis.ResponseError):
                raise results
            result_id, payload = results[0]
            return Result.restore(
                job_id,
                result_id.decode(),
                payload,
                connection=self._redis,  # type: ignore[arg-type]
                serializer=JSONSerializer,
            )
        except Exception as error:
            # RQ raises what it stumbles over.
            self._unreadables.note("result", job_id, _first_line(error))
            return None


def _progress(spec: JobSpec, state: JobState, last: JobEvent | None) -> Progress:
    if state is JobState.COMPLETED:
        return Progress(step=spec.total_steps, steps=spec.total_steps)
    if last is not None and last.type is EventType.STEP:
        return Progress.told(last.data)
    return Progress(step=0, steps=spec.total_steps)


def _error(
    state: JobState, result: JobResult | None, latest: Result | None, last: JobEvent | None
) -> JobError | None:
    if state is JobState.COMPLETED and result is None:
        return _LOST_RESULT
    if state is not JobState.FAILED:
        return None
    if last is not None and last.type is EventType.FAILED:
        with suppress(ValidationError):
            return JobError.model_validate(last.data["error"])
    # RQ's own clean-up failed the job, so no worker of ours could tell why.
    trace = (latest.exc_string or "") if latest is not None else ""
    return JobError(
        message=trace.strip().rsplit("\n", 1)[-1] or "The job was given up.", code="abandoned"
    )


def _first_line(error: Exception) -> str:
    """What is wrong, in a line; of a record that does not fit, the field and not the value."""
    if isinstance(error, ValidationError):
        first = error.errors(include_input=False, include_url=False)[0]
        return f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"
    return f"{type(error).__name__}: {error}".split("\n", 1)[0][:200]
