"""Jobs that end otherwise than well: failures, time-outs, stops, and Redis going away."""

import threading
import time

import pytest
import redis
from rq.command import send_stop_execution_command, send_stop_job_command
from rq.serializers import JSONSerializer

from koala.store import ImageStore
from tests.support import spec
from tests.worker.rig import Rig, describe
from worker.gallery import Gallery


class FullStore(ImageStore):
    """A store on a disk without room."""

    def put(self, name: str, data: bytes) -> None:
        raise OSError(28, "No space left on device")


def error(rig: Rig, job_id: str) -> tuple[str, str]:
    """Code and message of a failed job."""
    record = rig.record(job_id)
    assert record.state == "failed"
    assert record.error is not None
    return record.error.code, record.error.message


def test_a_failing_sample_fails_its_whole_job_and_no_other(rig: Rig) -> None:
    broken = rig.submit(prompt="broken", n=3)
    good = rig.submit()

    rig.work()

    assert error(rig, broken) == ("generation_failed", "the engine gave up")
    assert rig.engine.company[1:3] == [{broken, good}, {good}]
    assert rig.record(good).state == "completed"
    assert rig.told(broken) == ["queued", "admitted", "failed"]
    assert rig.leftovers() == []


def test_what_does_not_fit_fails_by_name_and_number(rig: Rig) -> None:
    job_id = rig.submit(prompt="huge")

    rig.work()

    assert error(rig, job_id) == (
        "does_not_fit",
        "64x64 px does not fit into the device's memory: needs 9.0 GiB, 7.0 GiB free",
    )


def test_a_reason_that_is_no_text_or_endless_fails_its_job_and_not_the_worker(rig: Rig) -> None:
    """Such as that of a LoRA whose keys are halves of surrogate pairs, or megabytes long."""
    job_id, good = rig.submit(prompt="unspeakable"), rig.submit()

    rig.work()

    code, message = error(rig, job_id)
    assert code == "generation_failed"
    assert message.startswith("\\ud800xxx")
    assert len(message) < 5000
    assert rig.record(good).state == "completed"
    assert rig.leftovers() == []


def test_a_store_that_refuses_fails_the_job_with_its_reason(rig: Rig) -> None:
    job_id = rig.submit(n=2)

    rig.work(gallery=Gallery(FullStore(rig.settings.resolved_image_store), describe))

    assert error(rig, job_id) == (
        "image_store_error",
        "The image was not stored: No space left on device.",
    )
    assert rig.leftovers() == []


def test_a_job_past_its_time_fails(rig: Rig) -> None:
    rig.settings = rig.settings.model_copy(update={"job_timeout": 1})
    job_id = rig.submit(num_inference_steps=1000)
    rig.engine.before_step = lambda number: time.sleep(0.02)

    rig.work()

    assert error(rig, job_id) == ("timeout", "The job did not finish within 1 seconds.")
    assert rig.engine.steps_taken < 1000


@pytest.mark.parametrize("by_execution", [False, True])
def test_any_job_in_flight_can_be_stopped(rig: Rig, by_execution: bool) -> None:
    first = rig.submit()
    stopped = rig.submit(num_inference_steps=1000)

    def stop(number: int) -> None:
        if number == 3 and by_execution:
            [execution] = rig.job(stopped).get_executions()
            send_stop_execution_command(rig.redis, stopped, execution.id)
        elif number == 3:
            send_stop_job_command(rig.redis, stopped, JSONSerializer)
        if number > 10:
            time.sleep(0.01)

    rig.engine.before_step = stop

    rig.work()

    assert rig.engine.steps_taken < 1000
    assert rig.job(stopped).get_status() == "stopped"
    assert rig.record(stopped).state == "cancelled"
    assert rig.told(stopped) == ["queued", "admitted", "cancelled"]
    assert rig.record(first).state == "completed"
    assert rig.leftovers() == []


def test_senseless_commands_do_no_harm(rig: Rig) -> None:
    job_id = rig.submit(num_inference_steps=1000)

    def disturb(number: int) -> None:
        if number == 2:
            for data in ("", "not json", "{}", "[]", '{"command": "stop-job"}'):
                rig.redis.publish("rq:pubsub:worker-1", data)
            send_stop_job_command(rig.redis, job_id, JSONSerializer)
        if number > 10:
            time.sleep(0.01)

    rig.engine.before_step = disturb

    rig.work()

    assert rig.engine.steps_taken < 1000
    assert rig.record(job_id).state == "cancelled"


def test_an_engine_that_raises_ends_the_worker_and_another_one_does_the_job(rig: Rig) -> None:
    job_id = rig.submit()

    def break_down(number: int) -> None:
        raise RuntimeError("device lost")

    rig.engine.before_step = break_down
    worker = rig.work()
    assert not worker.is_stopping
    assert rig.record(job_id).state == "in_progress"
    rig.expire_lease(job_id)

    rig.engine.before_step = lambda number: None
    rig.engine._samples.clear()
    rig.worker()._upkeep.reap()
    rig.work()

    record = rig.record(job_id)
    assert (record.state, record.attempts) == ("completed", 1)


def test_connections_that_are_cut_are_made_again(rig: Rig) -> None:
    job_id = rig.submit()
    rig.engine.before_step = lambda number: rig.redis.client_kill_filter(
        _type="normal", skipme=True
    )

    rig.work()

    assert rig.record(job_id).state == "completed"
    assert rig.leftovers() == []


def test_work_goes_on_while_redis_is_away(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    job_id = rig.submit_spec(spec(num_inference_steps=8))
    connect = redis.connection.UnixDomainSocketConnection._connect

    def refuse(self: object) -> None:
        raise redis.exceptions.ConnectionError("Redis is away")

    def switch(number: int) -> None:
        if number == 3:
            rig.redis.client_kill_filter(_type="normal", skipme=True)
            rig.redis.close()
            monkeypatch.setattr(redis.connection.UnixDomainSocketConnection, "_connect", refuse)
        if number == 8:
            # The last step is over long before Redis is back.
            back = threading.Timer(
                0.5,
                monkeypatch.setattr,
                (redis.connection.UnixDomainSocketConnection, "_connect", connect),
            )
            back.start()

    rig.engine.before_step = switch

    rig.work()

    assert rig.engine.steps_taken == 8
    record = rig.record(job_id)
    assert (record.state, record.attempts) == ("completed", 0)
    assert rig.told(job_id) == ["queued", "admitted", "completed"]
    assert rig.leftovers() == []
