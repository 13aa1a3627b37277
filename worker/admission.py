"""Admission: what may run here, and the claim that makes a popped job ours."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, cast

from pydantic import ValidationError
from redis.exceptions import RedisError, WatchError
from rq.exceptions import DeserializationError
from rq.executions import Execution, ExecutionRegistry
from rq.job import JobStatus
from rq.utils import utcformat
from rq.worker import WorkerStatus

from koala.events import EventType, JobEvent, publish
from koala.keys import GENERATE
from koala.scripts import TOKEN
from koala.settings import Settings
from koala.spec import JobSpec, unknown_fields
from worker.fencing import FencedJob, FencedWorker, plain
from worker.flight import Flight
from worker.leases import Leases
from worker.strays import Strays

# How long RQ's record of an execution is kept that is never removed.
_EXECUTION_TTL: Final = 7 * 86_400

# Why a job goes back whose claim was of no use.
NOT_BEGUN: Final = "not_begun"

_CLAIM_TRIES: Final = 5


class InvalidJob(Exception):
    """The job is none that this worker runs; the message says why."""


class UnsupportedJob(Exception):
    """The job asks for what this version does not know; the message names the field."""


@dataclass(frozen=True, slots=True)
class ServedModel:
    """What admission needs to know of the loaded model.

    ``names`` are those that a job may ask for it by. ``count_tokens`` counts a prompt's tokens
    without the marks at begin and end, of which the model reads ``max_prompt_tokens``.
    """

    id: str
    names: frozenset[str]
    count_tokens: Callable[[str], int]
    max_prompt_tokens: int


class Admission:
    """Reads jobs and claims them.

    Args:
        worker: In whose name.
        leases: The lease's length and the keys.
        strays: Told of each claim whose answer got lost.
        settings: The default time-out.
        model: The model that jobs may ask for.
    """

    def __init__(
        self,
        worker: FencedWorker,
        leases: Leases,
        strays: Strays,
        settings: Settings,
        model: ServedModel,
    ) -> None:
        self._worker = worker
        self._leases = leases
        self._strays = strays
        self._settings = settings
        self._model = model

    def read(self, job: FencedJob) -> JobSpec:
        """The spec of a popped job. Nothing that the job names is imported or called.

        Raises:
            InvalidJob: The job is not one of ours.
            UnsupportedJob: A newer version may understand it.
        """
        try:
            function, unnamed, arguments = job.func_name, job.args, job.kwargs
        except DeserializationError:
            raise InvalidJob("The job's data is not readable JSON.") from None
        except (TypeError, ValueError):
            raise InvalidJob("The job's data is not an RQ job.") from None
        if function != GENERATE:
            raise InvalidJob(f"This worker runs {GENERATE} and nothing else, not {function!r}.")
        if job.has_hooks:
            raise InvalidJob("This worker runs no jobs with callbacks or webhooks.")
        if unnamed:
            raise InvalidJob("The job's only argument has to be `spec`.")
        spec = _parse(arguments)
        if spec.model not in self._model.names:
            raise InvalidJob(
                f"The job asks for the model {spec.model!r}; this worker serves {self._model.id!r}."
            )
        return spec

    def claim(self, job: FencedJob) -> Execution | None:
        """Make a popped job ours in one transaction; ``None`` if it is no longer to be had.

        From here on RQ's registries show it running, it has a lease, and its token guards its end.

        Raises:
            redis.RedisError: Redis does not answer; the job goes back to the queue.
        """
        claim: Execution | None = None
        try:
            with self._worker.connection.pipeline() as pipeline:
                for _ in range(_CLAIM_TRIES):
                    pipeline.watch(job.key)  # type: ignore[no-untyped-call]
                    held = cast(list[bytes | None], pipeline.hmget(job.key, "status", TOKEN))
                    status, token = (plain(value) if value else None for value in held)
                    if claim is not None and token == claim.id:
                        # Only the answer to our claim got lost.
                        return self._hold(job, claim)
                    if status != JobStatus.QUEUED:
                        # Nothing to guard: somebody else has it, or it has ended.
                        pipeline.unwatch()
                        self._worker.connection.lrem(self._worker.keys.intermediate, 1, job.id)
                        return None
                    pipeline.multi()
                    claim = self._write_claim(job, pipeline)
                    # Raised where the job changed, and where the connection broke.
                    with suppress(WatchError):
                        pipeline.execute()
                        return self._hold(job, claim)
        except RedisError:
            if claim is not None:
                self._strays.add(job.id, claim.id, NOT_BEGUN)
            raise
        return None

    def _hold(self, job: FencedJob, claim: Execution) -> Execution:
        self._worker.executions[claim.id] = claim
        job.token = claim.id
        return claim

    def forget(self, execution: Execution) -> None:
        """Drop what RQ's worker holds of a claim that is given up."""
        self._worker.executions.pop(execution.id, None)

    def is_suspect(self, job: FencedJob) -> bool:
        """Whether one more death of its worker would end the job, which may only have been near."""
        return job.attempts >= max(1, self._settings.max_attempts - 1)

    def board(self, job: FencedJob, execution: Execution, spec: JobSpec) -> Flight:
        """The flight of a claimed job."""
        most = self._model.max_prompt_tokens
        counts = [
            self._model.count_tokens(text) for text in (spec.prompt, spec.negative_prompt or "")
        ]
        names = ("prompt", "negative prompt")
        job.spec = spec
        return Flight(
            job=job,
            execution=execution,
            spec=spec,
            timeout=self._timeout(job),
            text_tokens=sum(counts),
            truncated_tokens=sum(max(0, count - most) for count in counts),
            warnings=[
                f"The {name} has {count} tokens; the model reads the first {most}."
                for name, count in zip(names, counts, strict=True)
                if count > most
            ],
        )

    def _timeout(self, job: FencedJob) -> float:
        # RQ writes -1 for no limit, which this worker does not grant.
        limit = job.timeout or 0
        return limit if limit > 0 else self._settings.job_timeout

    def _write_claim(self, job: FencedJob, pipeline: Any) -> Execution:
        worker = self._worker
        execution = Execution.create(
            job, _EXECUTION_TTL, pipeline=pipeline, worker_name=worker.name
        )
        job.prepare_for_execution(worker.name, pipeline=pipeline)
        pipeline.hset(job.key, TOKEN, execution.id)
        self._correct_times(job, execution, pipeline)
        pipeline.persist(job.key)
        pipeline.eval(self._leases.take, 0, job.id, self._leases.lease_ms)
        event = JobEvent(EventType.ADMITTED, {"worker": worker.name})
        publish(pipeline, worker.keys, job.id, event, worker.event_ttl)
        if worker.get_state() != WorkerStatus.BUSY:
            worker.set_state(WorkerStatus.BUSY, pipeline=pipeline)
        return execution

    def _correct_times(self, job: FencedJob, execution: Execution, pipeline: Any) -> None:
        """Replace what RQ wrote by this machine's clock.

        In its registries an execution never expires: RQ fails a job whose execution did by the
        clock of any machine that looks. The lease decides.
        """
        moment = self._worker.clock.now()
        execution.created_at = execution.last_heartbeat = moment
        execution.save(_EXECUTION_TTL, pipeline)
        job.started_at = job.last_heartbeat = moment
        told = utcformat(moment)
        pipeline.hset(job.key, mapping={"started_at": told, "last_heartbeat": told})
        job.started_job_registry.add_execution(execution, pipeline, ttl=-1)
        of_job = ExecutionRegistry(job.id, self._worker.connection)
        pipeline.zadd(of_job.key, {execution.id: "+inf"})


def _parse(arguments: Any) -> JobSpec:
    if not isinstance(arguments, dict) or set(arguments) != {"spec"}:
        raise InvalidJob("The job's only argument has to be `spec`.")
    try:
        spec = JobSpec.model_validate(arguments["spec"])
    except ValidationError as error:
        problems = error.errors()
        first = problems[0]
        place = ".".join(str(part) for part in first["loc"]) or "spec"
        if all(problem["type"] == "literal_error" for problem in problems):
            raise UnsupportedJob(f"{place}={str(first['input'])[:80]}") from None
        raise InvalidJob(f"The job's spec is not valid: {place}: {first['msg']}.") from None
    if unknown := unknown_fields(arguments["spec"], spec):
        raise UnsupportedJob(", ".join(unknown)[:200])
    return spec
