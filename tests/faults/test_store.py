"""An image store that takes nothing more: the job fails and says so, the worker lives."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.accounts import check_completed_once
from tests.faults.parts import Parts, eventually, parts


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Parts]:
    with parts(tmp_path) as running:
        yield running


def refusal(service: Parts) -> str:
    """What a job says that ends while the store takes nothing."""
    answer = service.http.post(
        service.generations, json={"prompt": "a", "num_inference_steps": 4, "n": 2}
    )
    assert answer.status_code == 500
    error = answer.json()["error"]
    assert error["code"] == "image_store_error"
    assert answer.headers["x-should-retry"] == "false"
    record = service.rig.record(answer.headers["x-koala-job-id"])
    assert (record.state, record.attempts) == ("failed", 0)
    message: str = error["message"]
    return message


def test_a_store_that_cannot_be_written_fails_the_job_and_not_the_worker(service: Parts) -> None:
    worker = service.start_worker()
    service.wait_until_ready()
    # The permission bits of a folder stop everybody but root; a file in its place stops root too.
    store = Path(service.settings.resolved_image_store)
    store.rmdir()
    store.touch()

    message = refusal(service)
    assert "Not a directory" in message or "exists" in message

    store.unlink()
    job_id = service.admit(prompt="a", num_inference_steps=4)
    eventually(lambda: service.have_completed([job_id]))
    check_completed_once(service, [job_id])
    assert worker.is_alive()


def test_a_worker_claims_no_job_while_it_cannot_store_images(service: Parts) -> None:
    store = Path(service.settings.resolved_image_store)
    store.touch()
    worker = service.start_worker()
    service.wait_until_started(worker)
    job_id = service.admit(prompt="a", num_inference_steps=4)

    answer = service.http.get("/readyz")
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "image_store_unavailable"
    eventually(lambda: "no job is claimed" in service.log.read_text())
    assert service.rig.record(job_id).state == "queued"
    assert service.stop_worker(worker) == 0

    service.wait_until_started(service.start_worker())
    assert service.rig.record(job_id).state == "queued"
    store.unlink()
    eventually(lambda: service.have_completed([job_id]))
    check_completed_once(service, [job_id])
    service.wait_until_ready()


def test_a_full_store_fails_the_job_and_leaves_no_half_images(service: Parts) -> None:
    # An image of 64 px has some kilobytes, so a part of each can be written.
    worker = service.start_worker(file_limit=512)
    service.wait_until_ready()

    assert "too large" in refusal(service)

    store = Path(service.settings.resolved_image_store)
    assert list(store.iterdir()) == []
    assert worker.is_alive()
    assert service.stop_worker(worker) == 0
    service.wait_until_started(service.start_worker())
    job_id = service.admit(prompt="a", num_inference_steps=4)
    eventually(lambda: service.have_completed([job_id]))
    check_completed_once(service, [job_id])
