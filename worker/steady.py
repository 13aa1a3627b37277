"""RQ's worker, made steady: outages of Redis do not end it, signals make it drain."""

import signal
import threading
import time
from types import FrameType
from typing import Any, Final

import structlog
from redis.client import Pipeline, PubSub, PubSubWorkerThread
from redis.exceptions import RedisError
from rq import worker_registration
from rq.command import handle_command, parse_payload
from rq.exceptions import StopRequested
from rq.job import Job
from rq.queue import Queue
from rq.registry import ReadyJobRegistry

from worker.fencing import FencedWorker
from worker.link import Link, is_outage

log = structlog.get_logger()

# RQ shows a dead worker for a minute longer. Signs of life come from the beat's thread, so it can
# be short.
WORKER_TTL: Final = 30

# An idle worker's blocking pop. Every answer may take somewhat longer than that, and one that
# never comes keeps all in flight waiting for so long.
_POP_SECONDS: Final = 2
_ANSWER_SECONDS: Final = 5

_PUBSUB_RETRY_SECONDS: Final = 1.0

# How often a worker that may claim nothing looks whether it may.
_HOLD_SECONDS: Final = 0.2


class SteadyWorker(FencedWorker):
    """What keeps running around the loop.

    Args:
        drain_seconds: How long jobs in flight may go on after a stop was asked for.
    """

    max_connection_wait_time = 4.0

    def __init__(self, *args: Any, drain_seconds: float, **kwargs: Any) -> None:
        super().__init__(*args, worker_ttl=WORKER_TTL, log_job_description=False, **kwargs)
        self.log_result_lifespan = False
        self.link: Final = Link("loop")
        self._drain_seconds = drain_seconds
        self._drain_ends: float | None = None
        self._is_waiting = False
        self._next_maintenance = 0.0

    # Patience

    @property
    def dequeue_timeout(self) -> int:
        """RQ's: seconds of a blocking pop."""
        return _POP_SECONDS

    @property
    def connection_timeout(self) -> int:
        """RQ's: seconds within which Redis has to answer."""
        return _ANSWER_SECONDS

    # Stopping

    @property
    def is_stopping(self) -> bool:
        """Whether the worker was asked to stop."""
        return self._drain_ends is not None

    @property
    def is_drained(self) -> bool:
        """Whether jobs in flight have to be handed back now."""
        return self._drain_ends is not None and time.monotonic() >= self._drain_ends

    def request_stop(self, signum: int, frame: FrameType | None) -> None:
        """Take no more jobs and finish those in flight; asked again, hand them back at once.

        Raises:
            StopRequested: Out of the blocking pop, where RQ's loop expects it.
        """
        log.info("stopping", signal=signal.Signals(signum).name, at_once=self.is_stopping)
        patience = 0.0 if self.is_stopping else self._drain_seconds
        self._drain_ends = time.monotonic() + patience
        self._stop_requested = True
        if self._is_waiting:
            raise StopRequested

    @property
    def claims_nothing(self) -> bool:
        """Whether jobs are to be left to others for now."""
        return False

    def dequeue_job_and_maintain_ttl(
        self, timeout: int | None, max_idle_time: int | None = None
    ) -> tuple[Job, Queue] | None:
        """RQ's; a stop may interrupt the worker only here, where it does nothing else."""
        self._is_waiting = True
        patience = max_idle_time
        if timeout is not None and patience is None:
            # RQ would wait on in there, where jobs that were set aside are not looked for.
            patience = _POP_SECONDS
        try:
            while True:
                if self.is_stopping:
                    raise StopRequested
                if self.claims_nothing:
                    time.sleep(_HOLD_SECONDS)
                    continue
                # RQ waits where there is no connection; other outages are answers.
                with self.link.attempt():
                    found = self.take_supported() or super().dequeue_job_and_maintain_ttl(
                        timeout, patience
                    )
                    if found is not None or patience is max_idle_time:
                        return found
                time.sleep(self.link.seconds_to_wait)
        finally:
            self._is_waiting = False

    def take_supported(self) -> tuple[Job, Queue] | None:
        """A job that goes before those of the queue, if there is one."""
        raise NotImplementedError

    def _install_signal_handlers(self) -> None:
        if threading.current_thread() is threading.main_thread():
            super()._install_signal_handlers()  # type: ignore[no-untyped-call]

    # Outages

    def heartbeat(self, timeout: int | None = None, pipeline: Pipeline | None = None) -> None:
        """RQ's, in one round trip."""
        if pipeline is not None:
            super().heartbeat(timeout, pipeline)
            return
        with self.link.attempt(), self.connection.pipeline(transaction=False) as own:
            super().heartbeat(timeout, own)
            own.execute()

    def set_state(self, state: str, pipeline: Pipeline | None = None) -> None:
        """RQ's."""
        with self.link.attempt():
            super().set_state(state, pipeline)

    def check_for_suspension(self, burst: bool) -> None:
        """RQ's; while Redis is away nobody is suspended."""
        with self.link.attempt():
            super().check_for_suspension(burst)

    def run_maintenance_tasks(self) -> None:
        """RQ's; left out while Redis is away, and no reason to end."""
        try:
            with self.link.attempt():
                super().run_maintenance_tasks()  # type: ignore[no-untyped-call]
        except Exception:
            # RQ stumbles over entries of its registries that others left.
            log.exception("RQ's maintenance failed")

    @property
    def should_run_maintenance_tasks(self) -> bool:
        """RQ's, by a clock that is never set."""
        return time.monotonic() >= self._next_maintenance

    def clean_registries(self) -> None:
        """RQ's, without what it decides by this machine's clock: that is the reaper's business.

        It would fail jobs that are running or popped, and forget those that have ended.
        """
        queue = self.queues[0]
        if queue.acquire_maintenance_lock():
            ReadyJobRegistry(queue=queue, job_class=queue.job_class).cleanup()
            worker_registration.clean_worker_registry(queue)
            queue.release_maintenance_lock()  # type: ignore[no-untyped-call]
        self._next_maintenance = time.monotonic() + self.maintenance_interval

    def teardown(self) -> None:
        """RQ's; an entry that cannot be removed expires."""
        with self.link.attempt():
            super().teardown()  # type: ignore[no-untyped-call]

    def unsubscribe(self) -> None:
        """RQ's, in an order in which the listening thread ends at once, not after a second."""
        if self.pubsub is not None and self.pubsub_thread is not None:
            self.pubsub_thread.stop()
            self.pubsub.unsubscribe()
            self.pubsub_thread.join(timeout=1)

    # Commands

    def request_stop_job(self, job_id: str) -> None:
        """Stop a job in flight; called from the thread that listens."""
        raise NotImplementedError

    def request_stop_execution(self, execution_id: str) -> None:
        """RQ's command to stop one execution; called from the thread that listens."""
        execution = self.executions.get(execution_id)
        if execution is not None:
            self.request_stop_job(execution.job_id)

    def handle_payload(self, message: dict[str, Any]) -> None:
        """RQ's, except that any job in flight can be stopped, not only the first."""
        try:
            payload = parse_payload(message)
            if payload["command"] == "stop-job":
                self.request_stop_job(payload["job_id"])
            else:
                handle_command(self, payload)
        except (KeyError, TypeError, ValueError) as error:
            log.warning("a command makes no sense", data=message.get("data"), error=repr(error))

    def _pubsub_exception_handler(
        self, exc: Exception, pubsub: PubSub, pubsub_thread: PubSubWorkerThread
    ) -> None:
        # The thread runs an exception's handler and listens on, unless the handler raises.
        if not (isinstance(exc, RedisError) and is_outage(exc)):
            raise exc
        time.sleep(_PUBSUB_RETRY_SECONDS)
