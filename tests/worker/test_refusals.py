"""What a worker refuses to run, without being harmed by it."""

from pathlib import Path

import pytest
from rq import Callback, Queue
from rq.job import Job
from rq.serializers import JSONSerializer

from koala.keys import GENERATE
from tests.support import spec
from tests.worker.rig import Rig


@pytest.fixture
def queue(rig: Rig) -> Queue:
    """The queue as a stranger with access to Redis sees it."""
    return Queue(rig.settings.queue, connection=rig.redis, serializer=JSONSerializer)


def failure(rig: Rig, job: Job) -> str:
    """Why a job failed as invalid, checked from RQ's side and from the events'."""
    assert job.get_status() == "failed"
    assert job.id in Queue(job.origin, connection=rig.redis).failed_job_registry.get_job_ids()
    [*_, last] = rig.events(job.id)
    assert last.type == "failed"
    assert last.data["error"]["code"] == "invalid_job"
    message: str = last.data["error"]["message"]
    result = job.latest_result()
    assert result is not None
    assert result.exc_string == message
    return message


def works_on(rig: Rig, job_id: str) -> None:
    """The worker did a good job after the bad one, and nothing is left lying about."""
    assert rig.record(job_id).state == "completed"
    assert rig.leftovers() == []


def test_a_foreign_function_never_runs(rig: Rig, queue: Queue, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    job = queue.enqueue("os.system", f"touch {trace}")
    good = rig.submit()

    rig.work()

    assert failure(rig, job) == "This worker runs koala.generate and nothing else, not 'os.system'."
    assert not trace.exists()
    works_on(rig, good)


@pytest.mark.parametrize("hook", ["on_success", "on_failure", "on_stopped"])
def test_callbacks_are_never_imported(rig: Rig, queue: Queue, hook: str) -> None:
    callback = Callback("antigravity.geohash")
    job = queue.enqueue(
        GENERATE, kwargs={"spec": spec().model_dump(mode="json")}, **{hook: callback}
    )
    good = rig.submit()

    rig.work()

    assert failure(rig, job) == "This worker runs no jobs with callbacks or webhooks."
    works_on(rig, good)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({}, "The job's only argument has to be `spec`."),
        ({"spec": spec().model_dump(mode="json"), "more": 1}, "only argument has to be `spec`"),
        ({"spec": "draw"}, "The job's spec is not valid: spec: "),
        ({"spec": spec().model_dump(mode="json") | {"n": 99}}, "The job's spec is not valid: n: "),
        ({"spec": spec(width=65).model_dump(mode="json")}, "Not to be drawn: too odd."),
        ({"spec": spec(model="other").model_dump(mode="json")}, "asks for the model 'other'"),
    ],
)
def test_a_job_without_a_good_spec_fails(
    rig: Rig, queue: Queue, kwargs: dict[str, object], message: str
) -> None:
    job = queue.enqueue(GENERATE, kwargs=kwargs)
    good = rig.submit()

    rig.work()

    assert message in failure(rig, job)
    works_on(rig, good)


@pytest.mark.parametrize("data", [b"\x80\x04K\x01.", b"not json", b"[1]", b"7"])
def test_a_job_with_unreadable_data_fails(rig: Rig, queue: Queue, data: bytes) -> None:
    job = queue.enqueue("os.system", "true")
    rig.redis.hset(job.key, "data", data)
    good = rig.submit()

    rig.work()

    assert "The job's data is not" in failure(rig, job)
    works_on(rig, good)


def test_a_job_with_an_unreadable_hash_fails(rig: Rig, queue: Queue) -> None:
    job = queue.enqueue(GENERATE)
    rig.redis.hset(job.key, "created_at", "yesterday")
    good = rig.submit()

    rig.work()

    job.refresh()
    assert "The job's data is not" in failure(rig, job)
    works_on(rig, good)


def test_ids_without_a_job_are_thrown_out(rig: Rig) -> None:
    rig.redis.rpush(rig.keys.pending, "gone", "no:such id", "")
    good = rig.submit()

    rig.work()

    works_on(rig, good)
