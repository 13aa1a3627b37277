"""A job with a webhook is in the outbox as soon as it has ended, however that came."""

import time
from typing import Any

import pytest
from rq.command import send_stop_job_command
from rq.serializers import JSONSerializer

from tests.worker.claims import leases
from tests.worker.rig import Rig
from worker.fencing import FencedJob, FencedWorker

URL = "https://koala.example/hook"


def in_outbox(rig: Rig) -> dict[str, float]:
    """Job ids, by when their webhook is due."""
    return {
        name.decode(): due for name, due in rig.redis.zrange(rig.keys.outbox, 0, -1, True, True)
    }


def test_a_completed_job_is_in_the_outbox_and_due(rig: Rig) -> None:
    job_id = rig.submit(webhook_url=URL)
    rig.submit()
    assert in_outbox(rig) == {}

    rig.work()

    assert rig.record(job_id).state == "completed"
    [(name, due)] = in_outbox(rig).items()
    assert name == job_id
    assert due <= time.time()


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"prompt": "broken"}, "generation_failed"),
        ({"model": "another"}, "invalid_job"),
        ({"width": 65}, "invalid_job"),
    ],
)
def test_so_is_a_job_that_failed_or_was_refused(
    rig: Rig, changes: dict[str, object], code: str
) -> None:
    job_id = rig.submit(webhook_url=URL, **changes)

    rig.work()

    error = rig.record(job_id).error
    assert error is not None
    assert error.code == code
    assert list(in_outbox(rig)) == [job_id]


def test_so_is_a_job_that_was_stopped(rig: Rig) -> None:
    job_id = rig.submit(webhook_url=URL, num_inference_steps=1000)

    def stop(number: int) -> None:
        if number == 3:
            send_stop_job_command(rig.redis, job_id, JSONSerializer)
        if number > 10:
            time.sleep(0.01)

    rig.engine.before_step = stop

    rig.work()

    assert rig.record(job_id).state == "cancelled"
    assert list(in_outbox(rig)) == [job_id]


def test_so_is_a_job_that_killed_its_workers(rig: Rig) -> None:
    rig.settings = rig.settings.model_copy(update={"max_attempts": 1})
    job_id = rig.submit(webhook_url=URL)

    def die(number: int) -> None:
        raise RuntimeError("device lost")

    rig.engine.before_step = die
    rig.work()
    rig.expire_lease(job_id)
    assert in_outbox(rig) == {}

    rig.worker()._upkeep.reap()

    error = rig.record(job_id).error
    assert error is not None
    assert error.code == "worker_died"
    assert list(in_outbox(rig)) == [job_id]


def test_an_end_that_comes_too_late_puts_nothing_into_the_outbox(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = rig.submit(webhook_url=URL)
    write = FencedWorker.cleanup_execution

    def take_away(worker: FencedWorker, job: FencedJob, *args: Any, **kwargs: Any) -> None:
        write(worker, job, *args, **kwargs)
        # The lease was there when it was checked, and is gone before the transaction.
        leases(rig).hand_back([(job_id, job.token)], "test")
        rig.redis.delete(rig.keys.pending)

    monkeypatch.setattr(FencedWorker, "cleanup_execution", take_away)

    rig.work()

    assert rig.record(job_id).state == "queued"
    assert in_outbox(rig) == {}
