"""Idempotency keys, deadlines, and when to come back."""

import httpx
import pytest

from koala.settings import Settings
from tests.service.fakes import FakeWorker, Served, serving, wait_until
from tests.service.test_waiting import GENERATIONS, in_background, post


def keyed(
    served: Served, key: str, prefer: str = "respond-async", **body: object
) -> httpx.Response:
    headers = {"Idempotency-Key": key, "Prefer": prefer}
    return served.http.post(GENERATIONS, json={"prompt": "a"} | body, headers=headers)


def test_the_same_key_and_body_give_the_same_job(served: Served, worker: FakeWorker) -> None:
    first = keyed(served, "order 7")
    # Spelling out a default does not make another request.
    second = keyed(served, "order 7", n=None)

    assert second.status_code == 202
    assert first.json()["id"] == second.json()["id"]
    assert first.json()["seed"] == second.json()["seed"]
    assert "idempotent-replayed" not in first.headers
    assert second.headers["idempotent-replayed"] == "true"
    assert len(worker.waiting()) == 1
    outcomes = {
        outcome: served.metric(f'koala_jobs_submitted_total{{outcome="{outcome}"}}')
        for outcome in ("admitted", "known")
    }
    assert outcomes == {"admitted": 1, "known": 1}


def test_a_finished_job_is_given_again(served: Served, worker: FakeWorker) -> None:
    job_id = keyed(served, "order 7").json()["id"]
    worker.finish(worker.take())
    response = keyed(served, "order 7")
    assert response.status_code == 200
    assert response.json()["id"] == job_id


def test_the_same_key_with_another_body_is_refused_by_name(served: Served) -> None:
    keyed(served, "order 7")
    response = keyed(served, "order 7", prompt="something else")
    assert response.status_code == 422
    error = response.json()["error"]
    assert (error["param"], error["code"]) == ("Idempotency-Key", "idempotency_key_reused")
    assert response.headers["x-should-retry"] == "false"


@pytest.mark.parametrize("key", ["", "x" * 256, "tab\there", "na\xefve"])
def test_a_malformed_key_is_refused_by_name(served: Served, key: str) -> None:
    response = served.http.post(
        GENERATIONS, json={"prompt": "a"}, headers={"Idempotency-Key": key.encode("latin-1")}
    )
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "Idempotency-Key"


@pytest.mark.parametrize("seconds", [0, -1, 86_401, "soon", True])
def test_a_deadline_that_makes_no_sense_is_refused_by_name(api: Served, seconds: object) -> None:
    response = api.http.post(GENERATIONS, json={"prompt": "a", "deadline_seconds": seconds})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "deadline_seconds"


def test_a_job_that_failed_for_its_deadline_is_a_504_that_is_not_to_be_retried(
    served: Served, worker: FakeWorker
) -> None:
    pending = in_background(post, served, deadline_seconds=60)
    worker.fail(worker.take(), "deadline_exceeded")
    response = pending.result(120)
    assert response.status_code == 504
    assert response.json()["error"]["code"] == "deadline_exceeded"
    assert response.headers["x-should-retry"] == "false"


def test_nobody_waits_past_the_deadline_though_no_worker_is_there(
    served: Served, worker: FakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.routes.generations._DEADLINE_GRACE", 0.1)
    response = post(served, deadline_seconds=0.2)
    assert response.status_code == 504
    assert response.json()["error"]["code"] == "deadline_exceeded"
    assert worker.waiting() == []


def test_a_full_queue_says_when_a_tenth_of_it_will_be_done(
    settings: Settings, worker: FakeWorker
) -> None:
    worker.advertise(images_per_second=0.5)
    with serving(settings.model_copy(update={"max_queued": 40})) as served:
        for _ in range(40):
            post(served, "respond-async")
        response = post(served, n=2)
        assert response.status_code == 429
        # 4 jobs of 2 images.
        assert response.headers["retry-after"] == "16"
        worker.advertise(images_per_second=0.001)
        wait_until(lambda: post(served).headers["retry-after"] == "120")


def test_a_full_queue_says_something_sensible_when_no_pace_is_known(settings: Settings) -> None:
    with serving(settings.model_copy(update={"max_queued": 1})) as served:
        post(served, "respond-async")
        assert post(served).headers["retry-after"] == "5"
