"""What machines ask: alive, ready, metrics, models, and the page for people."""

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from rq.utils import utcformat

from koala.settings import Settings
from tests.service.fakes import FakeWorker, Served, serving, wait_until

GENERATIONS = "/v1/images/generations"


def test_ready_means_that_a_live_worker_has_the_model(served: Served, worker: FakeWorker) -> None:
    def status() -> int:
        return served.http.get("/readyz").status_code

    response = served.http.get("/readyz")
    assert response.status_code == 503
    assert response.json()["error"]["code"] == "no_worker"
    assert response.headers["retry-after"] == "2"
    assert "koala-demo" in response.json()["error"]["message"]
    worker.advertise(model="another")
    worker.advertise(name="dead", expires_at="2020-01-01T00:00:00Z")
    with pytest.raises(AssertionError, match="never"):
        wait_until(lambda: status() == 200, 0.8)
    worker.advertise()
    wait_until(lambda: status() == 200)
    assert served.http.head("/readyz").status_code == 200


def test_without_redis_the_gateway_is_alive_but_not_ready(tmp_path: Path) -> None:
    with serving(Settings(redis_url=f"unix://{tmp_path}/none.sock", data_dir=tmp_path)) as served:
        assert served.http.get("/healthz").json() == {"status": "ok"}
        response = served.http.get("/readyz")
        assert response.status_code == 503
        assert "Redis does not answer" in response.json()["error"]["message"]
        assert response.headers["retry-after"] == "2"
        assert served.metric("koala_redis_up") == 0
        [model] = served.http.get("/v1/models").json()["data"]
        assert model["ready"] is False


def test_a_store_that_cannot_be_used_makes_the_gateway_unready_until_it_is_repaired(
    settings: Settings, worker: FakeWorker
) -> None:
    store = Path(settings.resolved_image_store)
    store.parent.mkdir(parents=True, exist_ok=True)
    store.write_text("no folder")
    with serving(settings) as served:
        worker.advertise()
        response = served.http.get("/readyz")
        assert response.status_code == 503
        error = response.json()["error"]
        assert error["code"] == "image_store_unavailable"
        assert "the image store cannot be used (nothing can be written there: " in error["message"]
        assert response.headers["retry-after"] == "2"
        image = served.http.get(f"/v1/images/{'0' * 32}-0.png")
        assert image.status_code == 503
        assert image.json()["error"]["code"] == "image_store_unavailable"
        store.unlink()
        wait_until(lambda: served.http.get("/readyz").is_success)
        assert list(store.iterdir()) == []


def test_however_many_ask_the_store_is_probed_once_in_a_while(
    served: Served, worker: FakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    probes = []
    monkeypatch.setattr(served.gateway.store, "probe", lambda: probes.append(1))
    worker.advertise()
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: served.http.get("/readyz"), range(24)))
    assert {answer.status_code for answer in answers} == {200}
    assert len(probes) == 1


def test_a_store_that_does_not_answer_is_named_and_asked_once(
    served: Served, worker: FakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    probes, answer = [], threading.Event()

    def hang() -> None:
        probes.append(1)
        assert answer.wait(60)

    monkeypatch.setattr(served.gateway.store, "probe", hang)
    worker.advertise()
    for _ in range(2):
        response = served.http.get("/readyz")
        assert response.status_code == 503
        assert "it has not answered for" in response.json()["error"]["message"]
    assert served.http.get("/healthz").is_success
    answer.set()
    wait_until(lambda: served.http.get("/readyz").is_success)
    assert len(probes) == 1


def test_a_worker_that_claims_nothing_does_not_count_as_ready(
    served: Served, worker: FakeWorker
) -> None:
    worker.advertise(trouble="the image store cannot be used")
    response = served.http.get("/readyz")
    assert (response.status_code, response.json()["error"]["code"]) == (503, "no_worker")
    assert served.metric("koala_workers_alive") == 1
    assert served.metric("koala_workers_ready") == 0
    [told] = served.http.get("/v1/admin/workers").json()["data"]
    assert told["trouble"] == "the image store cannot be used"


def test_metrics_show_the_queue_and_the_workers(served: Served, worker: FakeWorker) -> None:
    headers = {"Prefer": "respond-async"}
    for _ in range(3):
        served.http.post(GENERATIONS, json={"prompt": "a"}, headers=headers)
    served.http.get("/v1/jobs/nobody")
    worker.advertise()
    assert served.metric("koala_redis_up") == 1
    assert served.metric("koala_queue_depth") == 3
    wait_until(lambda: served.metric("koala_workers_alive") == 1)
    assert served.metric("koala_workers_ready") == 1
    worker.advertise(name="other", model="another")
    wait_until(lambda: served.metric("koala_workers_alive") == 2)
    assert served.metric("koala_workers_ready") == 1
    assert served.metric('koala_jobs_submitted_total{outcome="admitted"}') == 3
    posts = f'method="POST",route="{GENERATIONS}"'
    assert served.metric(f'koala_http_requests_total{{{posts},status="202"}}') == 3
    assert served.metric(f"koala_http_request_seconds_count{{{posts}}}") == 3


def test_the_oldest_waiting_job_is_found_wherever_it_is_in_the_queue(
    served: Served, worker: FakeWorker
) -> None:
    assert served.metric("koala_queue_oldest_seconds") == 0
    old = datetime.now(UTC) - timedelta(hours=1)
    for priority in ("low", "normal", "high"):
        body = {"prompt": "a", "priority": priority}
        served.http.post(GENERATIONS, json=body, headers={"Prefer": "respond-async"})
    last = worker.waiting()[-1]
    worker.redis.hset(worker.keys.job(last), "created_at", utcformat(old))
    # What others put into the list may be no job at all.
    worker.redis.rpush(worker.keys.pending, "nobody")
    assert 3600 <= served.metric("koala_queue_oldest_seconds") < 3700


def test_metrics_have_one_series_for_a_route_and_one_for_all_unknown_paths(
    served: Served,
) -> None:
    for i in range(5):
        served.http.get(f"/v1/jobs/{i}")
        served.http.request(f"ODD{i}", f"/nothing/{i}")
        served.http.request(f"ODD{i}", "/v1/jobs")
    job, unknown = 'method="GET",route="/v1/jobs/{id}"', 'method="any",route="unknown"'
    assert served.metric(f'koala_http_requests_total{{{job},status="404"}}') == 5
    assert served.metric(f'koala_http_requests_total{{{unknown},status="404"}}') == 5
    odd = 'method="any",route="/v1/jobs"'
    assert served.metric(f'koala_http_requests_total{{{odd},status="405"}}') == 5


def test_two_gateways_in_one_process_do_not_share_metrics(
    served: Served, settings: Settings
) -> None:
    with serving(settings) as other:
        assert other.gateway.metrics.registry is not served.gateway.metrics.registry


def test_models_are_listed_with_what_they_can_do(served: Served, worker: FakeWorker) -> None:
    worker.advertise()
    wait_until(lambda: served.http.get("/readyz").is_success)
    listed = served.http.get("/v1/models").json()
    assert listed["object"] == "list"
    [model] = listed["data"]
    assert (model["id"], model["object"], model["ready"]) == ("koala-demo", "model", True)
    assert isinstance(model["created"], int)
    assert model["capabilities"]["default_size"] == "64x64"
    assert model["capabilities"]["quality_steps"]["high"] == 16
    assert model["capabilities"]["schedulers"][:2] == ["euler", "euler_a"]
    assert served.http.get("/v1/models/koala-demo").json() == model


@pytest.mark.parametrize("name", ["dall-e-3", "a/b", ""])
def test_another_model_is_a_404(served: Served, name: str) -> None:
    response = served.http.get(f"/v1/models/{name}")
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "model_not_found"


def test_a_hub_model_is_found_by_its_name_and_its_hub_id(settings: Settings) -> None:
    lightning = settings.model_copy(update={"model": "etri-vilab/koala-lightning-700m"})
    with serving(lightning) as served:
        for name in ("koala-lightning-700m", "etri-vilab/koala-lightning-700m"):
            assert served.http.get(f"/v1/models/{name}").json()["id"] == "koala-lightning-700m"
            response = served.http.post(
                GENERATIONS,
                json={"prompt": "a", "model": name, "size": "1024x768"},
                headers={"Prefer": "respond-async"},
            )
            assert response.json()["model"] == "koala-lightning-700m"
