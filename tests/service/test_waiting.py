"""Waiting for images: how long, what comes back, and what hanging up leaves behind."""

import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis

from koala import embedded
from koala.settings import Settings
from tests.service.fakes import FakeWorker, Served, serving, wait_until

GENERATIONS = "/v1/images/generations"
WAITING = "koala_waiting_clients"


def post(served: Served, prefer: str | None = None, **fields: Any) -> httpx.Response:
    headers = {} if prefer is None else {"Prefer": prefer}
    body = {"prompt": "a koala"} | fields
    return httpx.post(served.base_url + GENERATIONS, json=body, headers=headers, timeout=120)


@contextmanager
def running_redis(settings: Settings) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(embedded.prepare(settings)) as server:
        embedded.wait_until_ready(settings)
        yield server
        server.terminate()


@contextmanager
def refusing_writes(settings: Settings) -> Iterator[None]:
    """Let the server fail to save, upon which it refuses all writes, as with a full disk."""
    with redis.Redis.from_url(settings.resolved_redis_url) as client:
        names = client.config_get("d*")
        in_the_way = Path(names["dir"]) / names["dbfilename"]
        in_the_way.mkdir()
        client.config_set("save", "3600 1")
        client.bgsave()
        wait_until(lambda: client.info("persistence")["rdb_last_bgsave_status"] == "err")
        try:
            yield
        finally:
            in_the_way.rmdir()
            # Without times to save at there is nothing that could have failed.
            client.config_set("save", "")


def in_background(call: Any, *args: Any, **kwargs: Any) -> Future[httpx.Response]:
    pool = ThreadPoolExecutor(1)
    future = pool.submit(call, *args, **kwargs)
    pool.shutdown(wait=False)
    return future


def test_by_default_the_answer_is_the_finished_image(served: Served, worker: FakeWorker) -> None:
    pending = in_background(post, served, n=2, seed=7, safety_identifier="u1")
    job_id = worker.take()
    assert not pending.done()
    worker.finish(job_id)
    response = pending.result(120)
    assert response.status_code == 200
    assert response.headers["x-koala-job-id"] == job_id
    assert "preference-applied" not in response.headers
    body = response.json()
    assert isinstance(body["created"], int)
    names = [worker.spec(job_id).image_name(i) for i in range(2)]
    assert body["data"] == [
        {"url": f"{served.base_url}/v1/images/{name}", "seed": 7 + i}
        for i, name in enumerate(names)
    ]
    assert body["usage"] == {
        "input_tokens": 2,
        "input_tokens_details": {"text_tokens": 2, "image_tokens": 0},
        "output_tokens": 0,
        "total_tokens": 2,
    }
    wanted = {
        "id": job_id,
        "background": "opaque",
        "output_format": "png",
        "quality": "medium",
        "size": "64x64",
        "safety_identifier": "u1",
        "model": "koala-demo",
        "seed": 7,
        "num_inference_steps": 10,
        "guidance_scale": 3.5,
        "warnings": [],
    }
    assert body | wanted == body
    timings = body["timings"]
    assert timings["denoise_seconds"] == 0.1
    parts = timings["queued_seconds"] + timings["run_seconds"]
    assert timings["total_seconds"] == pytest.approx(parts, abs=0.001)


def test_the_answer_comes_as_soon_as_the_job_has_ended(served: Served, worker: FakeWorker) -> None:
    with worker.working():
        began = time.monotonic()
        for _ in range(8):
            assert post(served).status_code == 200
        # The slow look at watched jobs alone would take 8 x 1.5 s.
        assert time.monotonic() - began < 9


def test_a_public_url_is_the_base_of_image_urls(settings: Settings, worker: FakeWorker) -> None:
    with (
        serving(settings.model_copy(update={"public_url": "https://koala.example/x/"})) as served,
        worker.working(),
    ):
        [image] = post(served).json()["data"]
        assert image["url"].startswith("https://koala.example/x/v1/images/")


def test_respond_async_answers_with_the_job_at_once(served: Served) -> None:
    response = post(served, "respond-async")
    assert response.status_code == 202
    job = response.json()
    assert response.headers["location"] == f"/v1/jobs/{job['id']}"
    assert response.headers["preference-applied"] == "respond-async"
    assert response.headers["retry-after"] == "1"
    assert (job["object"], job["status"], job["position"]) == ("image.generation.job", "queued", 0)
    assert job["result"] is None
    assert served.http.get(response.headers["location"]).json()["id"] == job["id"]


@pytest.mark.parametrize("prefer", ["wait=1", "respond-async, wait=1"])
def test_a_wait_that_runs_out_answers_with_the_job_as_it_stands(
    served: Served, worker: FakeWorker, prefer: str
) -> None:
    pending = in_background(post, served, prefer)
    worker.take()
    response = pending.result(120)
    assert response.status_code == 202
    assert response.json()["status"] == "in_progress"
    assert response.headers["preference-applied"] == prefer
    assert response.elapsed.total_seconds() == pytest.approx(1, abs=0.5)


@pytest.mark.parametrize("prefer", ["wait=20", "respond-async, wait=20", "wait=20000000000000"])
def test_a_wait_that_suffices_answers_with_the_image(
    served: Served, worker: FakeWorker, prefer: str
) -> None:
    with worker.working():
        response = post(served, prefer)
    assert response.status_code == 200
    assert len(response.json()["data"]) == 1
    seconds = 20 if "0000" not in prefer else served.settings.sync_timeout
    assert response.headers["preference-applied"] == f"wait={seconds:g}"


def test_past_the_sync_timeout_a_504_names_the_job_and_the_job_goes_on(
    settings: Settings, worker: FakeWorker
) -> None:
    with serving(settings.model_copy(update={"sync_timeout": 0.3})) as served:
        response = post(served)
        [job_id] = worker.waiting()
        assert response.status_code == 504
        error = response.json()["error"]
        assert error["code"] == "wait_timeout"
        assert job_id in error["message"]
        assert response.headers["location"] == f"/v1/jobs/{job_id}"
        assert response.headers["x-koala-job-id"] == job_id
        assert response.headers["x-should-retry"] == "false"
        worker.finish(worker.take())
        assert served.http.get(response.headers["location"]).json()["status"] == "completed"


def test_a_job_that_fails_meanwhile_is_a_500_with_its_own_reason(
    served: Served, worker: FakeWorker
) -> None:
    pending = in_background(post, served)
    job_id = worker.take()
    worker.fail(job_id, code="out_of_memory")
    response = pending.result(120)
    assert response.status_code == 500
    error = response.json()["error"]
    assert (error["message"], error["code"]) == ("It does not fit.", "out_of_memory")
    assert response.headers["x-should-retry"] == "false"
    assert response.headers["location"] == f"/v1/jobs/{job_id}"


def test_a_job_that_is_cancelled_meanwhile_is_a_409(served: Served, worker: FakeWorker) -> None:
    pending = in_background(post, served)
    worker.cancel(worker.take())
    response = pending.result(120)
    assert response.status_code == 409
    assert response.json()["error"]["code"] == "job_cancelled"


def test_a_job_that_ends_without_a_word_is_noticed_all_the_same(
    served: Served, worker: FakeWorker
) -> None:
    pending = in_background(post, served)
    worker.finish(worker.take(), silently=True)
    assert pending.result(120).status_code == 200


def test_waiting_goes_on_after_the_subscription_was_cut(served: Served, worker: FakeWorker) -> None:
    pending = in_background(post, served)
    job_id = worker.take()
    assert worker.redis.client_kill_filter(_type="pubsub") >= 1
    worker.finish(job_id)
    assert pending.result(120).status_code == 200


def test_waiting_survives_a_restart_of_redis(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)
    with running_redis(settings) as server, serving(settings) as served:
        worker = FakeWorker(settings)
        pending = in_background(post, served)
        job_id = worker.take()
        server.terminate()
        server.wait()
        assert served.http.get("/readyz").status_code == 503
        assert not pending.done()
        with running_redis(settings):
            worker.finish(job_id)
            assert pending.result(120).json()["id"] == job_id


def test_many_clients_wait_at_once_and_each_gets_its_own(
    settings: Settings, worker: FakeWorker
) -> None:
    count = 100
    with (
        serving(settings) as served,
        ThreadPoolExecutor(count) as pool,
        httpx.Client(base_url=served.base_url, limits=httpx.Limits(), timeout=120) as http,
    ):
        pending = [
            pool.submit(http.post, GENERATIONS, json={"prompt": "a", "seed": i})
            for i in range(count)
        ]
        wait_until(lambda: served.metric(WAITING) == count, 30)
        finisher = threading.Thread(
            target=lambda: [worker.finish(worker.take()) for _ in range(count)]
        )
        finisher.start()
        seeds = [future.result(120).json()["data"][0]["seed"] for future in pending]
        finisher.join()
        assert seeds == list(range(count))
        wait_until(lambda: served.metric(WAITING) == 0)
        assert served.gateway.hub.watched == 0


def test_a_server_that_refuses_all_writes_ends_the_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Streams look when they beat.
    monkeypatch.setattr("service.image_stream.HEARTBEAT_SECONDS", 1.0)
    settings = Settings(data_dir=tmp_path)
    with running_redis(settings), serving(settings) as served:
        waiting = in_background(post, served)
        streaming = in_background(post, served, stream=True)
        wait_until(lambda: served.gateway.hub.watched and served.gateway.feeds.listeners)
        with refusing_writes(settings):
            answer = waiting.result(20)
            assert answer.status_code == 503
            assert answer.json()["error"]["code"] == "queue_unavailable"
            assert answer.headers["Retry-After"] == "2"
            job_id = answer.headers["x-koala-job-id"]
            assert "queue_unavailable" in streaming.result(40).text
            # Those that come now are not kept waiting either, and the job is still there.
            assert post(served).status_code == 503
            assert httpx.get(f"{served.base_url}/readyz").status_code == 503
            assert httpx.get(f"{served.base_url}/v1/jobs/{job_id}").json()["status"] == "queued"
        wait_until(lambda: not served.gateway.hub.is_refused)
        assert post(served, "respond-async").status_code == 202
