"""The parts of RQ that have no public name or no promise, as this project relies on them.

A new release of RQ that changes one of them fails here, by name, and not in production.
"""

import inspect

import pytest
import rq
from rq.command import handle_command, parse_payload
from rq.executions import Execution
from rq.intermediate_queue import IntermediateQueue
from rq.job import Job
from rq.queue import Queue
from rq.registry import (
    CanceledJobRegistry,
    FailedJobRegistry,
    FinishedJobRegistry,
    StartedJobRegistry,
)
from rq.worker import BaseWorker, SimpleWorker

from koala.keys import Keys


def test_the_release_is_the_one_that_was_read() -> None:
    assert rq.__version__.startswith("3.0.")


@pytest.mark.parametrize(
    ("function", "parameters"),
    [
        (SimpleWorker.execute_job, ["self", "job", "queue"]),
        (BaseWorker._finalize_success, ["self", "job", "queue", "execution", "return_value"]),
        (BaseWorker.handle_execution_ended, ["self", "job", "queue", "heartbeat_ttl"]),
        (BaseWorker.cleanup_execution, ["self", "job", "pipeline", "execution"]),
        (BaseWorker._enqueue_dependents_safely, ["self", "queue", "job"]),
        (BaseWorker.increment_failed_job_count, ["self", "pipeline"]),
        (BaseWorker.increment_total_working_time, ["self", "job_execution_time", "pipeline"]),
        (BaseWorker.heartbeat, ["self", "timeout", "pipeline"]),
        (BaseWorker.set_state, ["self", "state", "pipeline"]),
        (BaseWorker.check_for_suspension, ["self", "burst"]),
        (BaseWorker.dequeue_job_and_maintain_ttl, ["self", "timeout", "max_idle_time"]),
        (BaseWorker.request_stop, ["self", "signum", "frame"]),
        (BaseWorker.request_stop_execution, ["self", "execution_id"]),
        (BaseWorker.handle_payload, ["self", "message"]),
        (BaseWorker._pubsub_exception_handler, ["self", "exc", "pubsub", "pubsub_thread"]),
        (BaseWorker._install_signal_handlers, ["self"]),
        (BaseWorker.bootstrap, ["self", "logging_level", "date_format", "log_format"]),
        (BaseWorker.run_maintenance_tasks, ["self"]),
        (BaseWorker.clean_registries, ["self"]),
        (BaseWorker.teardown, ["self"]),
        (BaseWorker.unsubscribe, ["self"]),
        (BaseWorker.serialize, ["self"]),
        (Job.restore, ["self", "raw_data"]),
        (Job.prepare_for_execution, ["self", "worker_name", "pipeline"]),
        (Execution.create, ["job", "ttl", "pipeline", "worker_name"]),
        (Execution.save, ["self", "ttl", "pipeline"]),
        (StartedJobRegistry.add_execution, ["self", "execution", "pipeline", "ttl", "xx"]),
        (StartedJobRegistry.cleanup, ["self", "timestamp", "exception_handlers"]),
        (handle_command, ["worker", "payload"]),
        (parse_payload, ["payload"]),
    ],
)
def test_signatures_are_as_expected(function: object, parameters: list[str]) -> None:
    assert callable(function)
    assert list(inspect.signature(function).parameters) == parameters


@pytest.mark.parametrize(
    ("function", "prefix"),
    [
        (Queue.move_dependents_to_ready, ["self", "job", "pipeline"]),
        (Queue._fetch_dequeued_job, ["connection", "queue_key", "job_id"]),
        (Job._handle_failure, ["self", "exc_string", "pipeline", "worker_name", "execution_id"]),
        (Queue.dequeue_any, ["queues", "timeout", "connection", "job_class", "serializer"]),
    ],
)
def test_signatures_begin_as_expected(function: object, prefix: list[str]) -> None:
    assert callable(function)
    assert list(inspect.signature(function).parameters)[: len(prefix)] == prefix


def test_a_successful_end_asks_the_queue_on_a_watching_pipeline() -> None:
    source = inspect.getsource(BaseWorker.handle_job_success)
    watch = source.index("pipeline.watch(job.dependents_key)")
    ask = source.index("queue.move_dependents_to_ready(job, pipeline=pipeline)")
    multi = source.index("pipeline.multi()")
    clean = source.index("self.cleanup_execution(job, pipeline=pipeline, execution=execution)")
    execute = source.index("pipeline.execute()", clean)
    assert watch < ask < multi < clean < execute


def test_the_loop_looks_at_the_stop_request_between_two_jobs() -> None:
    source = inspect.getsource(BaseWorker.work)
    assert "if self._stop_requested:" in source
    assert "except StopRequested:" in source


def test_jobs_have_the_fields_that_are_cleared_or_set() -> None:
    fields = vars(Job("job", connection=object()))  # type: ignore[arg-type]
    assert {
        "_success_callback_name",
        "_failure_callback_name",
        "_stopped_callback_name",
        "webhooks",
        "retries_left",
        "ended_at",
    } <= set(fields)


def test_keys_are_where_the_scripts_look_for_them() -> None:
    keys = Keys("koala")
    connection = object()
    execution = Execution("token", "job", connection, "worker")  # type: ignore[arg-type]
    registry = StartedJobRegistry("koala", connection=connection)  # type: ignore[arg-type]
    assert Queue.redis_queue_namespace_prefix + "koala" == keys.pending
    assert IntermediateQueue.get_intermediate_queue_key(keys.pending) == keys.intermediate
    assert registry.key == keys.started
    for kind, key in (
        (FinishedJobRegistry, keys.finished),
        (FailedJobRegistry, keys.failed),
        (CanceledJobRegistry, keys.cancelled),
    ):
        assert kind("koala", connection=connection).key == key  # type: ignore[arg-type]
    assert Job.key_for("job") == keys.job("job")
    assert execution.key == "rq:execution:job:token"
    assert execution.composite_key == "job:token"
    assert execution.worker_executions_key == "rq:worker:worker:executions"
