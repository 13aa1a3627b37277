"""Jobs that nobody wants any more after a while."""

import time

from tests.worker.claims import reaper
from tests.worker.rig import Rig


def error(rig: Rig, job_id: str) -> str:
    failure = rig.record(job_id).error
    assert failure is not None
    return failure.code


def test_a_job_done_in_time_completes(rig: Rig) -> None:
    job_id = rig.submit(deadline=time.time() + 60)

    rig.work()

    assert rig.record(job_id).state == "completed"
    assert rig.redis.exists(rig.keys.deadlines) == 0


def test_a_job_that_can_no_longer_make_it_is_dropped_before_its_first_step(rig: Rig) -> None:
    rig.engine.before_step = lambda number: time.sleep(0.02)
    first = rig.submit(num_inference_steps=20)
    rig.work()
    steps = rig.engine.steps_taken

    # The worker knows by now that a step takes 20 ms at least.
    worker = rig.worker()
    worker._rates.step(0.02)
    late = rig.submit(num_inference_steps=500, deadline=time.time() + 5)
    worker.work(burst=True)

    assert rig.record(first).state == "completed"
    assert error(rig, late) == "deadline_exceeded"
    assert rig.engine.steps_taken == steps
    assert rig.leftovers() == []


def test_a_running_job_ends_at_its_deadline(rig: Rig) -> None:
    rig.engine.before_step = lambda number: time.sleep(0.02)
    other = rig.submit(num_inference_steps=60)
    job_id = rig.submit(num_inference_steps=1000, deadline=time.time() + 0.5)

    rig.work()

    assert error(rig, job_id) == "deadline_exceeded"
    assert rig.engine.steps_taken < 1000
    assert rig.record(other).state == "completed"


def test_a_waiting_job_fails_at_its_deadline_though_no_worker_takes_it(rig: Rig) -> None:
    late = rig.submit(deadline=time.time() - 1)
    waiting = rig.submit(deadline=time.time() + 60)
    worker = rig.worker()

    reaped = reaper(rig).reap()

    assert reaped.late == [late]
    assert [i.decode() for i in rig.redis.lrange(rig.keys.pending, 0, -1)] == [waiting]
    # Its reaper died before it could fail the job.
    rig.expire_lease(late)
    worker.work(burst=True)
    assert rig.engine.seeds == [7]
    assert error(rig, late) == "deadline_exceeded"
    assert rig.record(waiting).state == "completed"


def test_every_workers_upkeep_fails_what_is_late(rig: Rig) -> None:
    late = rig.submit(deadline=time.time() - 1)

    rig.worker()._upkeep.reap()

    assert error(rig, late) == "deadline_exceeded"
    assert rig.told(late) == ["queued", "failed"]
    assert rig.job(late).get_status() == "failed"
    assert rig.leftovers() == []


def waits(rig: Rig) -> float:
    """How many jobs' waits are counted."""
    count = rig.metrics.registry.get_sample_value("koala_queue_wait_seconds_count")
    assert count is not None
    return count


def test_the_wait_of_a_job_that_comes_too_late_is_counted_wherever_it_ends(rig: Rig) -> None:
    rig.submit(deadline=time.time() - 1)
    rig.worker()._upkeep.reap()
    assert waits(rig) == 1
    worker = rig.worker()
    worker._rates.step(1.0)
    claimed = rig.submit(num_inference_steps=500, deadline=time.time() + 60)
    refused = rig.submit(model="another")
    worker.work(burst=True)
    assert (error(rig, claimed), error(rig, refused)) == ("deadline_exceeded", "invalid_job")
    assert waits(rig) == 3
    assert rig.metrics.jobs_running._value.get() == 0
    finished = rig.metrics.jobs_finished
    assert finished.labels("failed", "deadline_exceeded")._value.get() == 2


def test_the_wait_of_a_job_that_is_drawn_is_counted_once(rig: Rig) -> None:
    rig.submit()
    rig.work()
    assert waits(rig) == 1
