"""Workers that die at the worst moments, with every setting at its default."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.accounts import check_completed_once, check_nothing_is_left
from tests.faults.parts import Parts, eventually, parts
from tests.faults.workers import POISON

# What recovery may take at most: a bound of the product, with its default lease.
RECOVERY_SECONDS = 15.0


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Parts]:
    with parts(tmp_path) as running:
        yield running


def milliseconds(event_id: str) -> int:
    return int(event_id.split("-")[0])


def test_jobs_of_a_killed_worker_run_again_within_fifteen_seconds(service: Parts) -> None:
    workers = [service.start_worker() for _ in range(2)]
    for worker in workers:
        service.wait_until_started(worker)
    jobs = [service.admit(prompt="a", num_inference_steps=50, n=4, seed=i) for i in range(4)]
    # Of the two it is one that has just begun, so that it is still at it when it is killed.
    eventually(lambda: "admitted" in service.rig.told(jobs[0]))
    holder = service.rig.record(jobs[0]).worker or ""
    [victim] = [worker for worker in workers if f"-{worker.pid}-" in holder]
    held = [
        job_id
        for job_id in jobs
        if (record := service.rig.record(job_id)).state == "in_progress"
        and f"-{victim.pid}-" in (record.worker or "")
    ]
    assert held, "nothing was in flight"
    seconds, micros = service.rig.redis.time()
    service.kill_worker(victim)
    killed_at = 1000 * seconds + micros // 1000

    # Now, because a stream keeps the latest events only. When the jobs are drawn again depends on
    # what is to be drawn before them.
    for job_id in held:
        eventually(lambda job_id=job_id: "requeued" in service.rig.told(job_id))
        [recovered] = [
            milliseconds(event.id)
            for event in service.rig.events(job_id)
            if event.type == "requeued"
        ]
        assert recovered - killed_at <= 1000 * RECOVERY_SECONDS
    eventually(lambda: service.have_completed(jobs))
    check_completed_once(service, jobs)
    check_nothing_is_left(service)


def test_a_job_popped_by_a_worker_that_dies_before_it_claims_it_runs_elsewhere(
    service: Parts,
) -> None:
    fatal = service.start_worker(death="popped")
    service.wait_until_started(fatal)
    job_id = service.admit(prompt="a", num_inference_steps=4)
    fatal.join(300)
    assert fatal.exitcode == -9
    assert service.rig.redis.lrange(service.rig.keys.intermediate, 0, -1) == [job_id.encode()]
    assert service.rig.record(job_id).state == "queued"
    service.wait_until_started(service.start_worker())
    seconds, micros = service.rig.redis.time()

    eventually(lambda: service.have_completed([job_id]))

    [recovered] = [milliseconds(e.id) for e in service.rig.events(job_id) if e.type == "requeued"]
    assert recovered - (1000 * seconds + micros // 1000) <= 1000 * RECOVERY_SECONDS
    assert service.rig.told(job_id) == ["queued", "requeued", "admitted", "completed"]
    assert service.rig.record(job_id).attempts == 0
    check_completed_once(service, [job_id])
    check_nothing_is_left(service)


def test_a_job_that_kills_its_workers_fails_and_takes_no_other_job_with_it(tmp_path: Path) -> None:
    with parts(tmp_path, lease_seconds=2, heartbeat_seconds=0.5) as service:
        # They are in flight together: those who only happened to be there must not pay for it.
        others = [service.admit(prompt="a", num_inference_steps=30, seed=i) for i in range(3)]
        poison = service.admit(prompt=POISON, num_inference_steps=4)
        others += [service.admit(prompt="a", num_inference_steps=4, seed=i) for i in range(3)]
        service.start_worker(death="poison")
        deaths = 0

        def is_over() -> bool:
            nonlocal deaths
            for worker in [worker for worker in service.workers if not worker.is_alive()]:
                assert worker.exitcode == -9
                deaths += 1
                service.workers.remove(worker)
                service.start_worker(death="poison")
            return all(
                service.rig.record(j).state in ("completed", "failed") for j in [poison, *others]
            )

        eventually(is_over)

        record = service.rig.record(poison)
        assert deaths == 3
        assert (record.state, record.attempts) == ("failed", 3)
        assert record.error is not None
        assert record.error.code == "worker_died"
        body = service.http.get(f"/v1/jobs/{poison}").json()
        assert body["error"]["code"] == "worker_died"
        assert [e for e in service.rig.told(poison) if e in ("failed", "completed")] == ["failed"]
        check_completed_once(service, others)
        check_nothing_is_left(service)
