"""Landing: writes down how a job ended, once, and lets it be told."""

import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

import structlog
from rq.executions import Execution

from worker.fencing import AlreadyEnded, FencedJob, FencedWorker, LeaseLost
from worker.flight import Flight, Outcome
from worker.metrics import WorkerMetrics
from worker.report import Report

log = structlog.get_logger()


class Landing:
    """Ends jobs under their lease, on a thread of its own: the engine does not wait for Redis.

    Args:
        worker: In whose name.
        metrics: Where lost leases and refused jobs' waits are counted.
        report: Tells of ends.
    """

    def __init__(self, worker: FencedWorker, metrics: WorkerMetrics, report: Report) -> None:
        self._worker = worker
        self._metrics = metrics
        self._report = report
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="landing")
        self._pending: dict[Flight, Future[float]] = {}

    def begin(self, flight: Flight, outcome: Outcome) -> None:
        """Start to write down the end of a flight, unless that is under way."""
        if flight not in self._pending:
            self._pending[flight] = self._pool.submit(self.land, flight, outcome)

    def ended(self, seconds: float = 0.0) -> Iterator[tuple[Flight, Future[float]]]:
        """The flights that :meth:`land` is done with, and what came of it.

        Waits up to ``seconds`` for one.
        """
        if seconds and self._pending:
            wait(self._pending.values(), seconds, FIRST_COMPLETED)
        for flight in [flight for flight, future in self._pending.items() if future.done()]:
            yield flight, self._pending.pop(flight)

    def close(self) -> None:
        """Wait for what is being written."""
        self._pool.shutdown()

    def land(self, flight: Flight, outcome: Outcome) -> float:
        """Write down the end of a flight; when that was done, as ``time.monotonic()`` has it.

        Raises:
            LeaseLost: The job is somebody else's; nothing was written.
            redis.RedisError: Redis does not answer; the call can be repeated.
        """
        job, execution = flight.job, flight.execution
        job.last_event = outcome.event
        try:
            if outcome.result is not None:
                self._worker.complete(job, execution, outcome.result.model_dump(mode="json"))
            else:
                self._worker.fail(job, execution, outcome.reason, outcome.status)
        except AlreadyEnded:
            log.info("a job had ended already", job_id=job.id)
        landed_at = time.monotonic()
        self._report.ended(flight, outcome)
        return landed_at

    def refuse(self, job: FencedJob, execution: Execution, reason: str) -> None:
        """Fail a claimed job that is none of ours; nothing it asks for at its end is done.

        Raises:
            redis.RedisError: Redis does not answer; the job is still claimed, or has failed.
        """
        log.warning("refused a job", job_id=job.id, reason=reason)
        outcome = Outcome.failed("invalid_job", reason)
        job.forget_hooks()
        job.last_event = outcome.event
        try:
            self._worker.fail(job, execution, outcome.reason)
        except LeaseLost:
            self._metrics.leases_lost.inc()
        except AlreadyEnded:
            log.info("a job had ended already", job_id=job.id)
        else:
            self._report.count(outcome)
            self._metrics.count_wait(job, execution.created_at)
        finally:
            self._worker.executions.pop(execution.id, None)
