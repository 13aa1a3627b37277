import threading
import time
from typing import Any

import pytest

from tests.service.fakes import FakeWorker, Served

GENERATIONS = "/v1/images/generations"


def submit(served: Served, **fields: Any) -> str:
    response = served.http.post(
        GENERATIONS, json={"prompt": "a koala"} | fields, headers={"Prefer": "respond-async"}
    )
    assert response.status_code == 202, response.text
    return str(response.json()["id"])


def one_at_a_time(seconds: float) -> dict[str, Any]:
    """The measurement of a worker that draws one guided image at a time, in such steps."""
    return {"width": 64, "height": 64, "max_rows": 2, "step_seconds": {2: seconds}}


def job(served: Served, job_id: str) -> dict[str, Any]:
    response = served.http.get(f"/v1/jobs/{job_id}")
    assert response.status_code == 200
    return dict(response.json())


def test_a_job_is_followed_from_the_queue_to_its_images(served: Served, worker: FakeWorker) -> None:
    first, second = submit(served), submit(served, n=2, seed=3, negative_prompt="rain")
    waiting = job(served, second)
    assert (waiting["status"], waiting["position"]) == ("queued", 1)
    assert waiting["progress"] == {"step": 0, "steps": 20}
    assert waiting["started_at"] is waiting["completed_at"] is waiting["result"] is None

    worker.finish(worker.take())
    assert job(served, second)["position"] == 0
    assert worker.take() == second
    worker.step(second, 4, 3)
    running = job(served, second)
    assert (running["status"], running["position"]) == ("in_progress", None)
    assert running["progress"] == {"step": 7, "steps": 20}
    assert isinstance(running["started_at"], int)
    assert running["completed_at"] is None

    worker.finish(second)
    done = job(served, second)
    assert done["status"] == "completed"
    assert done["created_at"] <= done["started_at"] <= done["completed_at"] < done["expires_at"]
    assert [image["seed"] for image in done["result"]["data"]] == [3, 4]
    assert done["result"]["id"] == second
    assert (done["negative_prompt"], done["attempts"], done["error"]) == ("rain", 0, None)
    assert job(served, first)["status"] == "completed"


def test_a_failed_job_says_why(served: Served, worker: FakeWorker) -> None:
    job_id = submit(served)
    worker.fail(worker.take(), code="timeout")
    failed = job(served, job_id)
    assert failed["status"] == "failed"
    assert failed["error"] == {"message": "It does not fit.", "code": "timeout"}
    assert failed["result"] is None


@pytest.mark.parametrize(
    "name", [f"job_{'0' * 32}", "job_1", "nothing", "x:dependents", "a%00b", "..%2F..", "%F0%9F"]
)
def test_an_unknown_job_is_a_404(served: Served, worker: FakeWorker, name: str) -> None:
    worker.redis.sadd("rq:job:x:dependents", "y")
    response = served.http.get(f"/v1/jobs/{name}")
    assert response.status_code == 404
    assert response.json()["error"]["code"] in ("job_not_found", "not_found")


def test_a_long_poll_ends_with_the_job(served: Served, worker: FakeWorker) -> None:
    job_id = submit(served)
    timer = threading.Timer(0.3, lambda: worker.finish(worker.take()))
    timer.start()
    began = time.monotonic()
    response = served.http.get(f"/v1/jobs/{job_id}?wait=15")
    assert response.json()["status"] == "completed"
    assert "retry-after" not in response.headers
    assert 0.2 < time.monotonic() - began < 3
    timer.join()


def test_a_long_poll_of_a_finished_job_returns_at_once(served: Served, worker: FakeWorker) -> None:
    job_id = submit(served)
    worker.finish(worker.take())
    response = served.http.get(f"/v1/jobs/{job_id}?wait=15")
    assert response.elapsed.total_seconds() < 1


def test_a_long_poll_that_runs_out_shows_the_job_as_it_stands(served: Served) -> None:
    job_id = submit(served)
    response = served.http.get(f"/v1/jobs/{job_id}?wait=0.2")
    assert response.json()["status"] == "queued"
    assert response.headers["retry-after"] == "1"


def test_base64_is_in_the_job_where_it_was_asked_for_but_not_in_lists(
    served: Served, worker: FakeWorker
) -> None:
    job_id = submit(served, response_format="b64_json")
    worker.finish(worker.take())
    [image] = job(served, job_id)["result"]["data"]
    assert image.keys() == {"b64_json", "seed"}
    [listed] = served.http.get("/v1/jobs").json()["data"]
    [image] = listed["result"]["data"]
    assert image.keys() == {"url", "seed"}


def test_the_list_goes_page_by_page_from_the_newest(served: Served) -> None:
    ids = [submit(served) for _ in range(5)][::-1]
    first = served.http.get("/v1/jobs?limit=2").json()
    assert first["object"] == "list"
    assert [entry["id"] for entry in first["data"]] == ids[:2]
    assert (first["first_id"], first["last_id"], first["has_more"]) == (ids[0], ids[1], True)
    last = served.http.get(f"/v1/jobs?limit=3&after={first['last_id']}").json()
    assert [entry["id"] for entry in last["data"]] == ids[2:]
    assert last["has_more"] is False
    beyond = served.http.get(f"/v1/jobs?after={ids[-1]}").json()
    assert (beyond["data"], beyond["first_id"], beyond["has_more"]) == ([], None, False)


def test_a_list_after_an_unknown_job_is_a_404(served: Served) -> None:
    response = served.http.get("/v1/jobs?after=nobody")
    assert response.status_code == 404
    assert response.json()["error"]["param"] == "after"


def test_the_eta_comes_from_the_workers_own_pace(served: Served, worker: FakeWorker) -> None:
    first, second = submit(served, n=2, num_inference_steps=10), submit(served)
    assert job(served, second)["eta_seconds"] is None
    worker.advertise(sizes=[one_at_a_time(1.0)])
    time.sleep(0.6)
    # Three images of ten steps of a second.
    assert job(served, second)["eta_seconds"] == pytest.approx(30, abs=0.9)
    worker.step(worker.take(), 10, 2)
    time.sleep(0.6)
    # Eight of twenty steps are left.
    response = served.http.get(f"/v1/jobs/{first}")
    assert response.json()["eta_seconds"] == pytest.approx(8, abs=0.9)
    assert response.headers["retry-after"] == "8"
    worker.finish(first)
    assert job(served, first)["eta_seconds"] is None


def test_a_completed_job_whose_files_are_gone_is_shown_with_the_reason(
    served: Served, worker: FakeWorker
) -> None:
    request = {"prompt": "a koala", "response_format": "b64_json", "n": 2}
    headers = {"Idempotency-Key": "once", "Prefer": "respond-async"}
    job_id = served.http.post(GENERATIONS, json=request, headers=headers).json()["id"]
    worker.finish(worker.take())
    worker.store.delete(worker.spec(job_id).image_name(1))

    for answer in (
        served.http.get(f"/v1/jobs/{job_id}"),
        served.http.post(f"/v1/jobs/{job_id}/cancel"),
        served.http.get(f"/v1/jobs/{job_id}?wait=1"),
    ):
        assert answer.status_code == 200, answer.text
        assert answer.json()["status"] == "completed"
        assert answer.json()["result"] is None
        assert answer.json()["error"]["code"] == "image_not_found"
    assert "event: completed" in served.http.get(f"/v1/jobs/{job_id}/events").text
    again = served.http.post(GENERATIONS, json=request, headers=headers)
    assert again.status_code == 404
    assert again.headers["x-koala-job-id"] == job_id
    assert job_id in again.json()["error"]["message"]


def test_a_queue_whose_memory_is_full_refuses_requests_in_words_and_shows_jobs(
    served: Served, worker: FakeWorker
) -> None:
    job_id = submit(served)
    worker.redis.config_set("maxmemory", 1)
    try:
        refused = served.http.post(GENERATIONS, json={"prompt": "a koala"})
        shown = job(served, job_id)
    finally:
        worker.redis.config_set("maxmemory", 0)

    assert refused.status_code == 503
    assert refused.json()["error"]["code"] == "queue_out_of_memory"
    assert refused.headers["Retry-After"] == "30"
    assert shown["status"] == "queued"
    assert submit(served)
