"""Who holds a job: leases, the fence at a job's end, and the reaper."""

import time
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest
from rq.queue import Queue
from rq.serializers import JSONSerializer

from koala.settings import Settings
from tests.worker.claims import admission, leases, pending, pop, reaper
from tests.worker.rig import FakeEngine, Rig
from worker.fencing import AlreadyEnded, LeaseLost

CENTURY = 100 * 365 * 86_400


def test_only_one_of_two_workers_gets_a_job(rig: Rig) -> None:
    job_id = rig.submit()
    first, second = rig.worker(), rig.worker()
    job = pop(rig, first)
    # The first worker is slow, so the job goes round and is popped again.
    rig.redis.lmove(rig.keys.intermediate, rig.keys.pending)
    again = pop(rig, second)

    assert admission(rig, first).claim(job) is not None
    assert admission(rig, second).claim(again) is None

    assert rig.job(job_id).worker_name == first.name
    assert rig.redis.exists(rig.keys.intermediate) == 0


def test_a_slow_claim_takes_the_job_out_of_the_list_it_was_put_back_to(rig: Rig) -> None:
    rig.submit()
    worker = rig.worker()
    job = pop(rig, worker)
    rig.redis.lmove(rig.keys.intermediate, rig.keys.pending)

    assert admission(rig, worker).claim(job) is not None

    assert pending(rig) == []


def test_a_job_whose_lease_was_lost_is_dropped_and_has_one_result(rig: Rig) -> None:
    job_id = rig.submit(num_inference_steps=6)
    other = FakeEngine()

    def lose_the_lease(number: int) -> None:
        if number == 3:
            rig.expire_lease(job_id)
            assert reaper(rig).reap().requeued == [job_id]
            rig.work(engine=other)

    rig.engine.before_step = lose_the_lease

    rig.work()

    assert rig.engine.steps_taken == 6
    assert other.steps_taken == 6
    assert rig.told(job_id) == ["queued", "admitted", "requeued", "admitted", "completed"]
    record = rig.record(job_id)
    assert record.worker == "worker-2"
    assert record.attempts == 1
    assert rig.redis.xlen(rig.keys.results(job_id)) == 1
    assert rig.metrics.registry.get_sample_value("koala_leases_lost_total") == 1
    assert rig.leftovers() == []


def test_the_beat_notices_a_lost_lease_before_the_end(rig: Rig) -> None:
    rig.settings = Settings(
        redis_url=rig.settings.redis_url,
        data_dir=rig.settings.data_dir,
        lease_seconds=0.5,
        heartbeat_seconds=0.1,
    )
    job_id = rig.submit(num_inference_steps=1000)

    def lose_the_lease(number: int) -> None:
        if number == 2:
            rig.redis.hset(rig.keys.job(job_id), "koala_execution", "another")
        time.sleep(0.01)

    rig.engine.before_step = lose_the_lease

    rig.work()

    assert rig.engine.steps_taken < 1000
    assert rig.metrics.registry.get_sample_value("koala_leases_lost_total") == 1


def test_the_beat_keeps_the_lease_however_long_a_step_takes(rig: Rig) -> None:
    rig.settings = Settings(
        redis_url=rig.settings.redis_url,
        data_dir=rig.settings.data_dir,
        lease_seconds=0.5,
        heartbeat_seconds=0.1,
    )
    job_id = rig.submit(num_inference_steps=1)
    reaped = []

    def take_long(number: int) -> None:
        time.sleep(1.2)
        reaped.append(reaper(rig).reap().requeued)

    rig.engine.before_step = take_long

    rig.work()

    assert reaped == [[]]
    assert rig.record(job_id).state == "completed"


def test_a_job_in_a_step_that_never_ends_is_let_go(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.upkeep.HANG_GRACE", 0.1)
    rig.settings = Settings(
        redis_url=rig.settings.redis_url,
        data_dir=rig.settings.data_dir,
        lease_seconds=0.5,
        heartbeat_seconds=0.1,
        job_timeout=1,
    )
    job_id = rig.submit(num_inference_steps=1)
    worker = rig.worker()
    trouble: list[str | None] = []

    def hang(number: int) -> None:
        trouble.append(worker.trouble)
        deadline = time.monotonic() + 120
        while rig.record(job_id).state == "in_progress":
            assert time.monotonic() < deadline
            time.sleep(0.02)
        trouble.append(worker.trouble)
        # Somebody else would do it now; here there is nobody.
        rig.redis.delete(rig.keys.pending)

    rig.engine.before_step = hang

    worker.work(burst=True)

    assert trouble[0] is None
    assert trouble[1] is not None and job_id in trouble[1]
    assert worker.trouble is None
    assert (rig.record(job_id).state, rig.record(job_id).attempts) == ("queued", 1)
    assert rig.redis.exists(rig.keys.results(job_id)) == 0


@pytest.mark.parametrize("end", ["complete", "fail"])
def test_the_end_of_a_job_is_fenced_in_its_own_transaction(rig: Rig, end: str) -> None:
    job_id = rig.submit()
    worker = rig.worker()
    job = pop(rig, worker)
    execution = admission(rig, worker).claim(job)
    assert execution is not None
    before = rig.redis.hgetall(job.key) | {b"koala_execution": b"another"}
    rig.redis.hset(job.key, "koala_execution", "another")

    with pytest.raises(LeaseLost):
        if end == "complete":
            worker.complete(job, execution, {})
        else:
            worker.fail(job, execution, "no reason")

    assert rig.redis.hgetall(job.key) == before
    assert rig.redis.exists(rig.keys.results(job_id)) == 0


@pytest.mark.parametrize("end", ["complete", "fail"])
def test_an_end_that_is_written_twice_counts_once(rig: Rig, end: str) -> None:
    job_id = rig.submit()
    worker = rig.worker()
    job = pop(rig, worker)
    execution = admission(rig, worker).claim(job)
    assert execution is not None

    def write() -> None:
        if end == "complete":
            worker.complete(job, execution, {})
        else:
            worker.fail(job, execution, "no reason")

    write()
    with pytest.raises(AlreadyEnded):
        write()

    assert rig.redis.xlen(rig.keys.results(job_id)) == 1


def test_the_reaper_puts_jobs_of_a_dead_worker_back_to_the_front_in_order(rig: Rig) -> None:
    worker = rig.worker()
    held = [rig.submit() for _ in range(3)]
    for _ in held:
        assert admission(rig, worker).claim(pop(rig, worker))
    later = rig.submit()
    assert reaper(rig).reap().requeued == []
    for job_id in held:
        rig.expire_lease(job_id)

    reaped = reaper(rig).reap()

    assert sorted(reaped.requeued) == sorted(held)
    assert pending(rig) == [*held, later]
    for job_id in held:
        record = rig.record(job_id)
        assert (record.state, record.attempts, record.worker) == ("queued", 1, None)
        last = rig.events(job_id)[-1]
        assert (last.type, last.data) == ("requeued", {"reason": "worker_died", "attempts": 1})
    rig.work()
    assert {rig.record(job_id).state for job_id in held} == {"completed"}
    assert rig.leftovers() == []


def test_the_reaper_puts_a_popped_but_unclaimed_job_back(rig: Rig) -> None:
    job_id = rig.submit()
    later = rig.submit()
    pop(rig, rig.worker())
    assert reaper(rig).reap().put_back == []
    assert pending(rig) == [later]
    rig.redis.zadd(rig.keys.unclaimed, {job_id: 1})

    assert reaper(rig).reap().put_back == [job_id]

    assert pending(rig) == [job_id, later]
    assert rig.record(job_id).attempts == 0
    assert rig.told(job_id) == ["queued", "requeued"]
    assert rig.redis.exists(rig.keys.intermediate, rig.keys.unclaimed) == 0


def test_a_claim_in_time_is_forgotten_by_the_reaper(rig: Rig) -> None:
    rig.submit()
    worker = rig.worker()
    job = pop(rig, worker)
    reaper(rig).reap()
    assert rig.redis.zcard(rig.keys.unclaimed) == 1

    assert admission(rig, worker).claim(job)

    assert rig.redis.zcard(rig.keys.unclaimed) == 0


def test_a_job_that_keeps_killing_workers_fails(rig: Rig) -> None:
    job_id = rig.submit()
    for _ in range(rig.settings.max_attempts):
        worker = rig.worker()
        assert admission(rig, worker).claim(pop(rig, worker))
        rig.expire_lease(job_id)
        survivor = rig.worker()
        survivor._upkeep.reap()

    record = rig.record(job_id)
    assert record.state == "failed"
    assert record.attempts == 3
    assert record.error is not None
    assert record.error.code == "worker_died"
    assert record.error.message == ("The job was given up: 3 workers were killed while running it.")
    queue = Queue(rig.settings.queue, connection=rig.redis, serializer=JSONSerializer)
    assert queue.failed_job_registry.get_job_ids() == [job_id]
    assert rig.leftovers() == []


def test_after_an_outage_the_first_worker_back_leaves_the_jobs_of_the_others_alone(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = rig.submit()
    holder, first_back = rig.worker(), rig.worker()
    assert admission(rig, holder).claim(pop(rig, holder))
    clock = time.monotonic()
    monkeypatch.setattr("worker.upkeep.time", SimpleNamespace(monotonic=lambda: clock))
    first_back.register_birth()
    first_back._upkeep.beat()
    # Redis is away for longer than a lease.
    clock += 20
    rig.expire_lease(job_id)

    first_back._upkeep.beat()
    assert rig.record(job_id).state == "in_progress"

    # The holder has not come back within a lease.
    for _ in range(5):
        clock += rig.settings.heartbeat_seconds
        first_back._upkeep.beat()
    assert (rig.record(job_id).state, rig.record(job_id).attempts) == ("queued", 1)


def test_a_reaper_that_dies_with_a_poisoned_job_is_followed_by_the_next(rig: Rig) -> None:
    job_id = rig.submit()
    worker = rig.worker()
    assert admission(rig, worker).claim(pop(rig, worker))
    rig.expire_lease(job_id)
    assert reaper(rig, max_attempts=1).reap().poisoned == {job_id: 1}
    assert reaper(rig, max_attempts=1).reap().poisoned == {}
    rig.expire_lease(job_id)

    assert reaper(rig, max_attempts=1).reap().poisoned == {job_id: 1}


def test_rq_never_fails_a_job_that_the_reaper_would_put_back(rig: Rig) -> None:
    job_id = rig.submit()
    worker = rig.worker()
    assert admission(rig, worker).claim(pop(rig, worker))
    queue = Queue(rig.settings.queue, connection=rig.redis, serializer=JSONSerializer)

    # `rq info` on a machine that takes this for another century.
    queue.started_job_registry.cleanup(timestamp=time.time() + CENTURY)

    assert rig.record(job_id).state == "in_progress"
    assert queue.started_job_registry.get_job_count(cleanup=False) == 1


@pytest.mark.parametrize("off_by", [CENTURY, -CENTURY // 4])
def test_a_worker_with_a_wrong_clock_leaves_rqs_registries_alone(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, off_by: int
) -> None:
    wrong = datetime.now(UTC) + timedelta(seconds=off_by)
    # What RQ reckons with wherever it writes or compares scores.
    monkeypatch.setattr("rq.utils.now", lambda: wrong)
    finished = rig.submit()
    rig.work()
    failed = rig.submit(prompt="broken")
    rig.work()
    running = rig.submit()
    worker = rig.worker()
    assert admission(rig, worker).claim(pop(rig, worker))

    other = rig.worker()
    other.run_maintenance_tasks()
    other._upkeep.reap()

    assert rig.record(running).state == "in_progress"
    scores = {
        name: rig.redis.zscore(getattr(rig.keys, name), job_id)
        for name, job_id in (("finished", finished), ("failed", failed))
    }
    seconds, _ = rig.redis.time()
    for name, score in scores.items():
        assert score is not None, name
        assert abs(score - seconds - rig.settings.result_ttl) < 60, name


def test_what_has_expired_by_redis_leaves_the_registries(rig: Rig) -> None:
    seconds, _ = rig.redis.time()
    for registry in (rig.keys.finished, rig.keys.failed, rig.keys.cancelled):
        rig.redis.zadd(registry, {"gone": seconds - 1, "there": seconds + 60})

    reaper(rig).reap()

    for registry in (rig.keys.finished, rig.keys.failed, rig.keys.cancelled):
        assert rig.redis.zrange(registry, 0, -1) == [b"there"]


def test_executions_of_jobs_that_do_not_run_leave_rqs_registry(rig: Rig) -> None:
    job_id = rig.submit()
    worker = rig.worker()
    execution = admission(rig, worker).claim(pop(rig, worker))
    assert execution is not None
    left = {f"{job_id}:another": 1, "job_gone:token": 1, "no execution": 1}
    rig.redis.zadd(rig.keys.started, left)

    reaper(rig).reap()

    assert rig.redis.zrange(rig.keys.started, 0, -1) == [execution.composite_key.encode()]


def test_the_index_forgets_expired_jobs(rig: Rig) -> None:
    ids = [rig.submit() for _ in range(3)]
    rig.redis.delete(rig.keys.job(ids[1]))

    reaper(rig).reap()

    assert rig.redis.zrange(rig.keys.index, 0, -1) == [ids[0].encode(), ids[2].encode()]


def test_jobs_are_handed_back_in_order_and_only_by_their_holder(rig: Rig) -> None:
    worker = rig.worker()
    ids = [rig.submit() for _ in range(3)]
    held = []
    for job_id in ids:
        execution = admission(rig, worker).claim(pop(rig, worker))
        assert execution is not None
        held.append((job_id, execution.id))

    returned = leases(rig).hand_back([*held[:2], (ids[2], "another")], "drained")

    assert sorted(returned) == sorted(ids[:2])
    assert pending(rig) == ids[:2]
    assert rig.record(ids[0]).attempts == 0
    assert rig.events(ids[0])[-1].data == {"reason": "drained", "attempts": 0}
    assert rig.record(ids[2]).state == "in_progress"


def test_a_job_claimed_by_another_at_the_same_moment_is_let_go(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = rig.submit()
    worker = rig.worker()
    job = pop(rig, worker)

    def meanwhile(status: bytes) -> str:
        # Between our look at the status and what we do about it, the other's claim commits.
        rig.redis.hset(job.key, "worker_name", "somebody else")
        return "started"

    monkeypatch.setattr("worker.admission.plain", meanwhile)
    assert admission(rig, worker).claim(job) is None
    assert rig.redis.lrange(rig.keys.intermediate, 0, -1) == []
    assert rig.record(job_id).state == "queued"
