"""Redis frozen or gone for a while: clients wait, workers go on, nobody pays an attempt."""

import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.faults.accounts import check_completed_once, check_nothing_is_left
from tests.faults.parts import Parts, eventually, parts


def freeze(service: Parts) -> Callable[[], None]:
    """Stop the server in the middle of whatever it does; call the result to let it go on."""
    assert service.valkey is not None
    server = service.valkey
    server.send_signal(signal.SIGSTOP)
    return lambda: server.send_signal(signal.SIGCONT)


def kill(service: Parts) -> Callable[[], None]:
    """Kill the server; call the result to start it on what it had written."""
    service.kill_valkey()
    return service.start_valkey


# How Redis is away, for how many seconds, and how much there is to draw meanwhile: with 1 image per
# job all is drawn before it is back and only has to be written down, with 6 the drawing goes on.
# A frozen server outlasts the default lease, the killed one a short lease.
@pytest.mark.parametrize(
    ("outage", "seconds", "images", "settings"),
    [
        (freeze, 20.0, 1, {}),
        (kill, 5.0, 6, {"lease_seconds": 2, "heartbeat_seconds": 0.5}),
    ],
    ids=["frozen", "killed"],
)
def test_an_outage_of_redis_loses_nothing_and_costs_no_attempt(
    tmp_path: Path,
    outage: Callable[[Parts], Callable[[], None]],
    seconds: float,
    images: int,
    settings: dict[str, float],
) -> None:
    with parts(tmp_path, worker_count=2, **settings) as service:
        endure(service, outage, seconds, images)


def endure(
    service: Parts, outage: Callable[[Parts], Callable[[], None]], seconds: float, images: int
) -> None:
    """Let clients wait through an outage that begins while both workers draw for them."""
    body = {"prompt": "a koala", "num_inference_steps": 50, "n": images}
    with ThreadPoolExecutor(6) as pool:
        pending = [
            pool.submit(httpx.post, service.generations, json=body, timeout=300, trust_env=False)
            for _ in range(6)
        ]
        eventually(lambda: _in_flight_everywhere(service))
        began = time.monotonic()
        end = outage(service)
        try:
            checked = 0
            while time.monotonic() < began + seconds:
                _check_that_the_gateway_says_so(service)
                checked += 1
                time.sleep(1)
            assert checked
            assert not any(each.done() for each in pending)
        finally:
            end()
        answers = [each.result(300) for each in pending]

    assert [answer.text for answer in answers if answer.status_code != 200] == []
    jobs = [answer.json()["id"] for answer in answers]
    assert all(worker.is_alive() for worker in service.workers)
    assert [service.rig.record(job_id).attempts for job_id in jobs] == [0] * 6
    check_completed_once(service, jobs)
    check_nothing_is_left(service)
    service.wait_until_ready(2)


def _in_flight_everywhere(service: Parts) -> bool:
    ids = service.rig.redis.zrange(service.rig.keys.index, 0, -1)
    records = [service.rig.record(job_id.decode()) for job_id in ids]
    running = {record.worker for record in records if record.state == "in_progress"}
    return len(records) == 6 and len(running) == 2


def _check_that_the_gateway_says_so(service: Parts) -> None:
    assert service.http.get("/healthz").status_code == 200
    ready = service.http.get("/readyz")
    assert ready.status_code == 503
    assert "retry-after" in ready.headers
    assert ready.json()["error"]["code"] == "queue_unavailable"
    refused = service.http.post(service.generations, json={"prompt": "a"})
    assert refused.status_code == 503
    assert "retry-after" in refused.headers
    assert refused.json()["error"]["code"] == "queue_unavailable"
