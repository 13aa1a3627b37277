"""Jobs with fields that only a newer version knows."""

import threading
import time

import pytest

from koala.cancelling import Cancelled
from koala.spec import JobSpec
from tests.service.fakes import wait_until
from tests.support import spec
from tests.worker.claims import pending
from tests.worker.rig import Rig
from worker import admission
from worker.unsupported import SUPPORT_SECONDS


class NewerSpec(JobSpec):
    """A spec as a later version may have it."""

    style: str = "watercolour"


def newer(**changes: object) -> NewerSpec:
    return NewerSpec.model_validate(spec(**changes).model_dump())


def set_aside(rig: Rig) -> list[str]:
    return [job_id.decode() for job_id in rig.redis.zrange(rig.keys.unsupported, 0, -1)]


def become_newer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "JobSpec", NewerSpec)


def test_a_job_with_an_unknown_field_is_not_drawn_and_keeps_nobody_waiting(rig: Rig) -> None:
    left = rig.submit_spec(newer(seed=1))
    good = rig.submit(seed=2)

    rig.work()

    assert rig.engine.seeds == [2]
    assert rig.record(good).state == "completed"
    assert rig.record(left).state == "queued"
    assert rig.record(left).attempts == 0
    assert rig.told(left) == ["queued"]
    assert set_aside(rig) == [left]
    assert rig.leftovers() == []


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"priority": "urgent"}, "priority=urgent"),
        ({"lora": [{"name": "a", "weight": 1.0, "layers": "unet"}]}, "lora.0.layers"),
    ],
)
def test_unknown_values_and_fields_of_parts_are_for_newer_workers_too(
    rig: Rig, changes: dict[str, object], field: str
) -> None:
    job_id = rig.submit()
    job = rig.job(job_id)
    job.kwargs = {"spec": job.kwargs["spec"] | changes}
    job.save()

    rig.work()

    assert set_aside(rig) == [job_id]
    assert rig.engine.seeds == []
    rig.redis.zadd(rig.keys.unsupported, {job_id: 1})
    rig.work()
    result = rig.job(job_id).latest_result()
    assert result is not None
    assert field in str(result.exc_string)


def test_a_worker_that_knows_the_field_draws_what_others_set_aside_first_and_in_order(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = [rig.submit_spec(newer(seed=seed)) for seed in (1, 2, 3)]
    rig.work()
    assert rig.engine.seeds == []
    jobs.append(rig.submit(seed=4))
    become_newer(monkeypatch)

    rig.work()

    assert rig.engine.seeds == [1, 2, 3, 4]
    assert [rig.record(job_id).state for job_id in jobs] == ["completed"] * 4
    assert rig.leftovers() == []
    assert set_aside(rig) == []


def test_an_idle_worker_that_knows_the_field_takes_the_job(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig.settings = rig.settings.model_copy(update={"heartbeat_seconds": 0.1})
    job_id = rig.submit_spec(newer())
    worker = rig.worker()
    # The job ends the worker's wait twice: when it is set aside, and when it is understood.
    running = threading.Thread(target=worker.work, kwargs={"max_jobs": 2}, daemon=True)
    running.start()
    wait_until(lambda: set_aside(rig) == [job_id], 60)
    become_newer(monkeypatch)
    worker._unsupported._known.clear()

    running.join(60)

    assert not running.is_alive()
    assert rig.record(job_id).state == "completed"


def test_a_job_that_nobody_understands_in_time_fails_and_names_the_field(rig: Rig) -> None:
    job_id = rig.submit_spec(newer())
    rig.work()
    seconds, _ = rig.redis.time()
    rig.redis.zadd(rig.keys.unsupported, {job_id: 1000 * (seconds - SUPPORT_SECONDS + 30)})
    rig.work()
    assert rig.record(job_id).state == "queued"

    rig.redis.zadd(rig.keys.unsupported, {job_id: 1000 * (seconds - SUPPORT_SECONDS - 1)})
    rig.work()

    record = rig.record(job_id)
    assert record.state == "failed"
    assert record.error is not None
    assert record.error.code == "unsupported_job"
    assert "style" in record.error.message
    assert set_aside(rig) == []
    assert rig.leftovers() == []


def test_a_job_that_some_worker_understands_is_not_given_up_by_another(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = rig.submit_spec(newer())
    older = rig.worker()
    rig.work()
    rig.redis.zadd(rig.keys.unsupported, {job_id: 1})
    with monkeypatch.context() as patched:
        become_newer(patched)
        rig.worker()._unsupported.look()

    older._upkeep.reap()

    assert rig.record(job_id).state == "queued"
    assert set_aside(rig) == [job_id]


def test_a_job_that_was_set_aside_can_be_cancelled_and_comes_too_late_like_any_other(
    rig: Rig,
) -> None:
    unwanted = rig.submit_spec(newer(owner="somebody"))
    late = rig.submit_spec(newer(deadline=time.time() + 3600))
    rig.work()
    assert sorted(set_aside(rig)) == sorted([unwanted, late])

    assert rig.cancel(unwanted) is Cancelled.CANCELLED
    rig.redis.zadd(rig.keys.deadlines, {late: 1})
    rig.work()

    assert rig.record(unwanted).state == "cancelled"
    assert rig.record(late).state == "failed"
    assert set_aside(rig) == []
    assert rig.redis.scard(rig.keys.waiting_of("somebody")) == 0


def test_jobs_that_were_set_aside_count_for_the_bound_of_the_queue(rig: Rig) -> None:
    rig.settings = rig.settings.model_copy(update={"max_queued": 1})
    rig.submit_spec(newer())
    rig.work()

    with pytest.raises(Exception, match="The queue is full: 1 jobs"):
        rig.submit()
    assert pending(rig) == []
