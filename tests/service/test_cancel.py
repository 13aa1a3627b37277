"""Cancelling over HTTP, and what hanging up leaves behind."""

import httpx
import pytest

from tests.service.fakes import FakeWorker, Served, wait_until
from tests.service.test_waiting import GENERATIONS, WAITING, in_background, post


def cancel(served: Served, job_id: str, **query: float) -> httpx.Response:
    return served.http.post(f"/v1/jobs/{job_id}/cancel", params=query)


def abandoned(served: Served, outcome: str) -> float:
    return served.metric(f'koala_jobs_abandoned_total{{outcome="{outcome}"}}')


def hang_up(served: Served, headers: dict[str, str] | None = None) -> None:
    """Ask for an image and do not wait for it."""
    url = served.base_url + GENERATIONS
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(url, json={"prompt": "a"}, headers=headers, timeout=0.5)


def test_a_waiting_job_is_cancelled_and_its_client_told(served: Served, worker: FakeWorker) -> None:
    pending = in_background(post, served)
    wait_until(lambda: bool(worker.waiting()))
    [job_id] = worker.waiting()

    response = cancel(served, job_id)

    assert response.status_code == 200
    job = response.json()
    assert (job["id"], job["status"], job["position"]) == (job_id, "cancelled", None)
    answer = pending.result(120)
    assert answer.status_code == 409
    assert answer.json()["error"]["code"] == "job_cancelled"
    assert answer.headers["x-should-retry"] == "false"
    assert cancel(served, job_id).json() == job


def test_cancelling_a_running_job_waits_for_its_end(served: Served, worker: FakeWorker) -> None:
    job_id = post(served, "respond-async").json()["id"]
    worker.take()
    pending = in_background(cancel, served, job_id, wait=10)
    wait_until(lambda: worker.redis.hexists(worker.keys.job(job_id), "koala_cancel"))
    worker.cancel(job_id)
    assert pending.result(120).json()["status"] == "cancelled"


def test_cancelling_a_running_job_may_be_told_before_its_end(
    served: Served, worker: FakeWorker
) -> None:
    job_id = post(served, "respond-async").json()["id"]
    worker.take()
    response = cancel(served, job_id, wait=0)
    assert response.json()["status"] == "in_progress"
    assert response.headers["retry-after"] == "1"


def test_a_job_that_is_done_stays_done(served: Served, worker: FakeWorker) -> None:
    job_id = post(served, "respond-async").json()["id"]
    worker.finish(worker.take())
    assert cancel(served, job_id).json()["status"] == "completed"


@pytest.mark.parametrize("job_id", ["job_" + "0" * 32, "nonsense", "..%2f..%2fetc"])
def test_what_is_no_job_cannot_be_cancelled(served: Served, job_id: str) -> None:
    response = served.http.post(f"/v1/jobs/{job_id}/cancel")
    assert response.status_code == 404
    assert "error" in response.json()


def test_a_client_that_hangs_up_cancels_the_job_it_alone_waited_for(
    served: Served, worker: FakeWorker
) -> None:
    hang_up(served)
    wait_until(lambda: served.metric(WAITING) == 0)
    wait_until(lambda: not worker.waiting())
    assert served.gateway.hub.watched == 0
    assert abandoned(served, "cancelled") == 1
    [job] = served.http.get("/v1/jobs").json()["data"]
    assert job["status"] == "cancelled"
    status = f'koala_http_requests_total{{method="POST",route="{GENERATIONS}",status="499"}}'
    assert served.metric(status) == 1


def test_a_job_that_somebody_else_follows_goes_on_without_its_first_client(
    served: Served, worker: FakeWorker
) -> None:
    first = in_background(hang_up, served)
    wait_until(lambda: bool(worker.waiting()))
    [job_id] = worker.waiting()
    url = f"{served.base_url}/v1/jobs/{job_id}"
    second = in_background(httpx.get, url, params={"wait": 15}, timeout=120)
    wait_until(lambda: worker.redis.hexists(worker.keys.job(job_id), "koala_kept"))
    first.result(120)
    wait_until(lambda: abandoned(served, "kept") == 1)
    worker.finish(worker.take())
    assert second.result(120).json()["status"] == "completed"


def test_a_job_with_an_idempotency_key_goes_on_and_is_there_for_the_next_try(
    served: Served, worker: FakeWorker
) -> None:
    headers = {"Idempotency-Key": "order 7"}
    hang_up(served, headers)
    wait_until(lambda: abandoned(served, "kept") == 1)
    job_id = worker.take()
    again = in_background(
        httpx.post, served.base_url + GENERATIONS, json={"prompt": "a"}, headers=headers
    )
    worker.finish(job_id)
    response = again.result(120)
    assert response.json()["id"] == job_id
    assert response.headers["idempotent-replayed"] == "true"


def test_who_wanted_a_job_and_not_an_image_may_hang_up(served: Served, worker: FakeWorker) -> None:
    job_id = post(served, "respond-async").json()["id"]
    url = f"{served.base_url}/v1/jobs/{job_id}"
    with pytest.raises(httpx.ReadTimeout):
        httpx.get(url, params={"wait": 10}, timeout=0.3)
    wait_until(lambda: served.metric(WAITING) == 0)
    assert worker.take() == job_id
