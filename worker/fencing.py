"""RQ's job, queue and worker, fenced: only who holds a job's lease can end it.

RQ ends jobs without looking at what became of them meanwhile. Here the check is part of the
transaction that ends the job, so it cannot be overtaken.
"""

from typing import Any, Final, cast

import structlog
from redis import Redis
from redis.client import Pipeline
from redis.exceptions import RedisError, WatchError
from rq.executions import Execution
from rq.job import Job, JobStatus
from rq.queue import Queue
from rq.serializers import JSONSerializer
from rq.worker import SimpleWorker

from koala.clock import RedisClock
from koala.events import EventType, JobEvent, publish
from koala.expiry import ExpiringImages
from koala.keys import Keys
from koala.scripts import ATTEMPTS, TOKEN, WEBHOOK
from koala.spec import JobSpec
from koala.unreadable import is_wrong_type

log = structlog.get_logger()


class LeaseLost(Exception):
    """The job belongs to somebody else by now, or to nobody."""


class AlreadyEnded(Exception):
    """The job was ended under our own lease, by us: only the answer to that got lost."""


class FencedJob(Job):
    """A job that knows under which lease it is held and how its end is told.

    ``token`` is the id of the execution it was claimed for. ``last_event`` is published in the
    transaction that ends the job; where ``has_webhook``, that puts the job into the outbox too.
    ``spec`` is known once the job was read. ``attempts`` counts the workers that died with the job
    in flight.
    """

    token: str = ""
    spec: JobSpec | None = None
    last_event: JobEvent | None = None
    has_webhook: bool = False
    attempts: int = 0

    def restore(self, raw_data: Any) -> Any:
        """RQ's, and the fields that are ours."""
        self.has_webhook = WEBHOOK.encode() in raw_data
        self.attempts = int(raw_data.get(ATTEMPTS.encode(), 0))
        return super().restore(raw_data)

    @classmethod
    def empty(cls, job_id: str, connection: Redis, origin: str) -> "FencedJob":
        """A job without data, in place of one that cannot be read, so that it can fail.

        Raises:
            ValueError: No job can have this id.
        """
        job = cls(job_id, connection=connection, serializer=JSONSerializer)
        job.data = b""
        job.origin = origin
        return job

    def forget_hooks(self) -> None:
        """Drop what RQ would import or call when the job ends: callbacks, webhooks, retries.

        For jobs that nobody of ours enqueued.
        """
        self._success_callback_name = None
        self._failure_callback_name = None
        self._stopped_callback_name = None
        self.webhooks = []
        self.retries_left = None

    @property
    def has_hooks(self) -> bool:
        """Whether RQ would import or call something when the job ends."""
        names = (
            self._success_callback_name,
            self._failure_callback_name,
            self._stopped_callback_name,
        )
        return any(names) or bool(self.webhooks)


class FencedQueue(Queue):
    """The queue as the worker sees it."""

    job_class = FencedJob

    def move_dependents_to_ready(
        self, job: Job, pipeline: Pipeline | None = None, *args: Any, **kwargs: Any
    ) -> dict[str, list[str]]:
        """RQ's, which ``handle_job_success`` calls with a watching pipeline: the place to check.

        Raises:
            LeaseLost: The job is no longer ours.
            AlreadyEnded: The job was ended by an earlier attempt of ours.
        """
        if pipeline is not None and isinstance(job, FencedJob):
            check_fence(job, pipeline)
        return super().move_dependents_to_ready(job, pipeline, *args, **kwargs)

    @classmethod
    def fetch_popped(
        cls,
        connection: Redis,
        queue_key: str,
        job_id: str,
        job_class: type[Job],
        serializer: Any,
    ) -> tuple[Job, Queue] | None:
        """A job that is in the list of popped ones, as RQ's own pop would give it."""
        return cls._fetch_dequeued_job(
            connection, queue_key, job_id, job_class=job_class, serializer=serializer
        )

    @classmethod
    def _fetch_dequeued_job(
        cls, connection: Redis, queue_key: str, job_id: str, *args: Any, **kwargs: Any
    ) -> tuple[Job, Queue] | None:
        # What somebody else put into the list must not end the worker that pops it.
        try:
            fetched = super()._fetch_dequeued_job(connection, queue_key, job_id, *args, **kwargs)
        except RedisError as error:
            if not is_wrong_type(error):
                raise
            log.warning("what was queued is no job", job_id=job_id, error=str(error))
            fetched = None
        except Exception as error:
            log.warning("a queued job cannot be read", job_id=job_id, error=repr(error))
            fetched = cls._unreadable(connection, queue_key, job_id)
        if fetched is None:
            connection.lrem(f"{queue_key}:intermediate", 1, job_id)
        return fetched

    @classmethod
    def _unreadable(
        cls, connection: Redis, queue_key: str, job_id: str
    ) -> tuple[Job, Queue] | None:
        # An empty job in its place fails as invalid. No job can have an id that RQ refuses.
        queue = cls.from_queue_key(queue_key, connection=connection)
        try:
            return FencedJob.empty(job_id, connection, queue.name), queue
        except ValueError:
            return None


def plain(value: bytes) -> str:
    """A field of a job's hash as text, which others may have made anything of."""
    return value.decode(errors="replace")


def check_fence(job: FencedJob, pipeline: Pipeline) -> None:
    """Make the transaction that follows on ``pipeline`` fail unless ``job`` is still ours.

    Raises:
        LeaseLost: It is not.
        AlreadyEnded: It was ended by an earlier attempt of ours.
    """
    pipeline.watch(job.key)  # type: ignore[no-untyped-call]
    held = cast(list[bytes | None], pipeline.hmget(job.key, "status", TOKEN))
    status, token = (plain(value) if value else None for value in held)
    if token != job.token:
        raise LeaseLost(job.id)
    if status != JobStatus.STARTED:
        raise AlreadyEnded(job.id)


class FencedWorker(SimpleWorker):
    """Ends jobs by RQ's own means, under the fence and with the job's last event.

    Args:
        keys: Keys of the worker's one queue.
        clock: Redis' time, which all that is written down of jobs is in.
        event_ttl: Seconds that a stream of events is kept.
    """

    queue_class = FencedQueue
    job_class = FencedJob

    def __init__(
        self, *args: Any, keys: Keys, clock: RedisClock, event_ttl: int, **kwargs: Any
    ) -> None:
        self.keys: Final = keys
        self.clock: Final = clock
        self.event_ttl: Final = event_ttl
        super().__init__(*args, **kwargs)

    def complete(self, job: FencedJob, execution: Execution, result: dict[str, Any]) -> None:
        """End a job that has its result.

        Raises:
            LeaseLost: The job is no longer ours; nothing was written.
            AlreadyEnded: The job was ended by an earlier attempt.
            redis.RedisError: Redis does not answer; the call can be repeated.
        """
        self._finalize_success(job, self.queues[0], execution, result)

    def fail(
        self,
        job: FencedJob,
        execution: Execution | None,
        reason: str,
        status: JobStatus = JobStatus.FAILED,
    ) -> None:
        """End a job that failed, or was stopped (``JobStatus.STOPPED``), and say why.

        RQ's ``handle_job_failure`` hides whether it could write, so its steps are taken here.

        Raises:
            LeaseLost: The job is no longer ours; nothing was written.
            AlreadyEnded: The job was ended by an earlier attempt.
            redis.RedisError: Redis does not answer; the call can be repeated.
        """
        with self.connection.pipeline() as pipeline:
            while True:
                check_fence(job, pipeline)
                pipeline.multi()
                self._write_failure(job, execution, reason, status, pipeline)
                try:
                    pipeline.execute()
                    break
                except WatchError:
                    continue
        self._enqueue_dependents_safely(self.queues[0], job)

    def _write_failure(
        self,
        job: FencedJob,
        execution: Execution | None,
        reason: str,
        status: JobStatus,
        pipeline: Pipeline,
    ) -> None:
        job.ended_at = self.clock.now()
        job.set_status(status, pipeline=pipeline)
        self.cleanup_execution(job, pipeline=pipeline, execution=execution)
        job._handle_failure(
            reason,
            pipeline=pipeline,
            worker_name=self.name,
            execution_id=execution.id if execution else None,
            execution_started_at=execution.created_at if execution else None,
            execution_ended_at=job.ended_at,
        )
        self._expire(self.keys.failed, job, job.failure_ttl, pipeline)
        self.increment_failed_job_count(pipeline)
        if job.started_at is not None:
            self.increment_total_working_time(job.ended_at - job.started_at, pipeline)

    def cleanup_execution(
        self, job: Job, pipeline: Pipeline, execution: Execution | None = None
    ) -> None:
        """RQ's hook in the transaction that ends a job: lease, last event, outbox belong there.

        The token stays, so that a repeated attempt can tell its own work from somebody else's.
        """
        super().cleanup_execution(job, pipeline, execution)
        pipeline.zrem(self.keys.leases, job.id)
        if not isinstance(job, FencedJob):
            return
        if job.spec is not None:
            # What a job stored that did not complete goes with the next sweep.
            completed = job.last_event is not None and job.last_event.type is EventType.COMPLETED
            kept = (job.result_ttl or 0) if completed else 0
            member = ExpiringImages.of(job.spec).encode()
            pipeline.zadd(self.keys.images, {member: int(self.clock.time()) + kept})
            if completed:
                self._expire(self.keys.finished, job, job.result_ttl, pipeline)
        if job.has_webhook:
            pipeline.zadd(self.keys.outbox, {job.id: self.clock.time()})
        if job.last_event is not None:
            publish(pipeline, self.keys, job.id, job.last_event, self.event_ttl)

    def handle_execution_ended(self, job: Job, queue: Queue, heartbeat_ttl: int) -> None:
        """RQ's, without a write of its own: it would come before the check of the lease."""
        job.ended_at = self.clock.now()

    def _expire(self, registry: str, job: Job, ttl: int | None, pipeline: Pipeline) -> None:
        """Say when a registry forgets a job that RQ put into it by the machine's clock."""
        # Another program that puts jobs into the queue may leave it to RQ, or not want it at all.
        if ttl is not None and ttl >= 0:
            pipeline.zadd(registry, {job.id: int(self.clock.time()) + ttl}, xx=True)
