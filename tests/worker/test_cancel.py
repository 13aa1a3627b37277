"""Cancelling a job that a worker holds: one end, whoever is first."""

import time

import pytest

from koala.cancelling import Cancelled
from tests.worker.claims import claim, leases, reaper
from tests.worker.rig import Rig


def slowly(number: int) -> None:
    """Give the thread that listens for commands a chance."""
    if number > 10:
        time.sleep(0.01)


def test_a_running_job_stops_at_its_next_steps_and_others_go_on(rig: Rig) -> None:
    other = rig.submit()
    job_id = rig.submit(num_inference_steps=1000)

    def cancel(number: int) -> None:
        if number == 3:
            assert rig.cancel(job_id) is Cancelled.ASKED
            assert rig.cancel(job_id) is Cancelled.ASKED
        slowly(number)

    rig.engine.before_step = cancel

    rig.work()

    assert rig.engine.steps_taken < 1000
    assert rig.record(job_id).state == "cancelled"
    assert rig.told(job_id) == ["queued", "admitted", "cancelled"]
    assert rig.record(other).state == "completed"
    assert rig.cancel(job_id) is Cancelled.OVER
    assert rig.leftovers() == []


def test_the_wish_arrives_with_the_next_beat_when_the_command_got_lost(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig.settings = rig.settings.model_copy(update={"heartbeat_seconds": 0.1})
    job_id = rig.submit(num_inference_steps=1000)
    worker = rig.worker()
    monkeypatch.setattr(worker, "handle_payload", lambda message: None)

    def cancel(number: int) -> None:
        if number == 3:
            rig.cancel(job_id)
        slowly(number)

    rig.engine.before_step = cancel

    worker.work(burst=True)

    assert rig.engine.steps_taken < 1000
    assert rig.record(job_id).state == "cancelled"


def test_a_job_that_is_done_when_it_is_cancelled_stays_completed(rig: Rig) -> None:
    job_id = rig.submit(num_inference_steps=3)

    rig.work()

    assert rig.cancel(job_id) is Cancelled.OVER
    assert rig.record(job_id).state == "completed"


def test_a_job_cancelled_between_pop_and_claim_is_not_started(rig: Rig) -> None:
    job_id = rig.submit()
    worker = rig.worker()
    rig.redis.lmove(rig.keys.pending, rig.keys.intermediate)

    assert rig.cancel(job_id) is Cancelled.CANCELLED

    worker.work(burst=True)
    assert rig.engine.steps_taken == 0
    assert rig.told(job_id) == ["queued", "cancelled"]
    assert rig.leftovers() == []


@pytest.mark.parametrize("by", ["death", "drain"])
def test_a_job_that_was_to_be_cancelled_is_not_run_again(rig: Rig, by: str) -> None:
    job_id = rig.submit()
    _, execution = claim(rig, rig.worker())
    rig.cancel(job_id)

    if by == "drain":
        leases(rig).hand_back([(job_id, execution.id)], "drained")
    else:
        rig.expire_lease(job_id)
        reaper(rig).reap()

    assert rig.record(job_id).state == "cancelled"
    assert rig.told(job_id) == ["queued", "admitted", "cancelled"]
    assert rig.leftovers() == []
