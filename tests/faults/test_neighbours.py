"""Failures of others: what one client does, or what fails for one, spoils nothing for the next."""

import base64
import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.faults.accounts import check_nothing_is_left
from tests.faults.parts import Parts, eventually, parts
from tests.faults.workers import HUGE


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Parts]:
    with parts(tmp_path_factory.mktemp("neighbours")) as running:
        running.start_worker(death="short")
        running.wait_until_ready()
        yield running


def draw(service: Parts, **body: object) -> np.ndarray:
    """The pixels that a client gets who asks for it and waits."""
    request = {"prompt": "a koala", "seed": 5, "num_inference_steps": 8, **body}
    response = httpx.post(
        service.generations,
        json=request | {"response_format": "b64_json"},
        timeout=300,
        trust_env=False,
    )
    assert response.status_code == 200, response.text
    [image] = response.json()["data"]
    with Image.open(io.BytesIO(base64.b64decode(image["b64_json"]))) as opened:
        return np.asarray(opened.convert("RGB")).astype(int)


def are_alike(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two images are the same but for what a batch of another size rounds otherwise."""
    return one.shape == other.shape and int(np.abs(one - other).max()) <= 3


def check_health(service: Parts) -> None:
    assert service.http.get("/readyz").status_code == 200
    assert [worker.is_alive() for worker in service.workers] == [True]
    check_nothing_is_left(service)


def test_clients_that_hang_up_abort_no_request_but_their_own(service: Parts) -> None:
    wanted = draw(service)
    body = {"prompt": "a banana", "num_inference_steps": 150}
    for _ in range(5):
        ended = len(service.rig.redis.zrange(service.rig.keys.index, 0, -1))
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(service.generations, json=body, timeout=1.5, trust_env=False)
        eventually(lambda ended=ended: _all_over(service, ended))
    assert are_alike(draw(service), wanted)
    check_health(service)


def _all_over(service: Parts, at_least: int) -> bool:
    ids = service.rig.redis.zrange(service.rig.keys.index, 0, -1)
    states = {service.rig.record(job_id.decode()).state for job_id in ids}
    return len(ids) >= at_least and states <= {"completed", "cancelled", "failed"}


def test_each_of_two_calls_at_once_gets_its_own_answer(service: Parts) -> None:
    bodies = [{"prompt": "a koala", "seed": 1}, {"prompt": "a banana", "seed": 2}]
    alone = [draw(service, **body) for body in bodies]
    assert not are_alike(*alone)
    with ThreadPoolExecutor(2) as pool:
        for _ in range(3):
            together = list(pool.map(lambda body: draw(service, **body), bodies))
            assert all(map(are_alike, together, alone))
    check_health(service)


def test_a_request_that_memory_runs_out_for_is_answered_and_spoils_no_other(
    service: Parts,
) -> None:
    wanted = draw(service)
    with ThreadPoolExecutor(2) as pool:
        beside = pool.submit(draw, service, num_inference_steps=60)
        for _ in range(3):
            huge = httpx.post(
                service.generations,
                json={"prompt": f"a {HUGE} koala"},
                timeout=300,
                trust_env=False,
            )
            assert huge.status_code >= 400
            assert huge.json()["error"]["code"] == "does_not_fit"
        assert beside.result(300).shape == wanted.shape
    assert are_alike(draw(service), wanted)
    check_health(service)


@pytest.mark.parametrize(
    "bad",
    [
        {"prompt": "a koala", "size": "63x64"},
        {"prompt": "a koala", "num_inference_steps": 0},
        {"prompt": 7},
        {"prompt": "a koala", "lora": [{"name": "missing"}]},
    ],
)
def test_a_bad_request_leaves_the_service_healthy(service: Parts, bad: dict[str, object]) -> None:
    wanted = draw(service)
    response = service.http.post(service.generations, json=bad)
    assert response.status_code == 400, response.text
    assert are_alike(draw(service), wanted)
    check_health(service)
