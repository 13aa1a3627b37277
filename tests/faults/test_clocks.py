"""Machines whose clocks are wrong: only Redis' time counts."""

import platform
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from rq.registry import FailedJobRegistry, FinishedJobRegistry

from koala.expiry import ExpiringImages
from tests.faults.accounts import check_completed_once
from tests.faults.clocks import Clock
from tests.faults.parts import Parts, eventually
from tests.service.webhook_rig import SECRET, Receiver, receiving
from tests.support import spec

pytestmark = pytest.mark.skipif(
    (sys.platform, platform.machine()) != ("linux", "x86_64"),
    reason="the package libfaketime brings its library for x86-64 Linux only",
)

# What a time may be off that goes by way of three processes on a busy machine.
CLOSE = 30.0
# Less than any clock here is wrong by, except for the seconds that kill a worker's heartbeats.
FAR = 1800.0


@dataclass(frozen=True)
class Service:
    """A gateway and a worker, each with a clock of its own."""

    parts: Parts
    gateway: Clock
    worker: Clock
    hooks: Receiver

    def now(self) -> float:
        """Redis' time."""
        seconds, micros = self.parts.rig.redis.time()
        return seconds + micros / 1e6

    def generate(self, **body: Any) -> Any:
        """Send a request and wait for its end; the response."""
        return self.parts.http.post(self.parts.generations, json={"prompt": "a"} | body)

    def job(self, job_id: str) -> Any:
        """A job as a client sees it."""
        return self.parts.http.get(f"/v1/jobs/{job_id}").json()

    def beat(self) -> None:
        """Return after two heartbeats of the worker."""
        redis, key = self.parts.rig.redis, self.parts.rig.keys.workers
        for _ in range(2):
            [before] = redis.hvals(key)
            eventually(lambda before=before: redis.hvals(key) != [before])

    def sweep(self) -> None:
        """Return after a whole sweep of the gateway."""
        rig = self.parts.rig
        for _ in range(2):
            due = ExpiringImages.of(spec()).encode()
            rig.redis.zadd(rig.keys.images, {due: self.now() - 1})
            eventually(lambda due=due: rig.redis.zscore(rig.keys.images, due) is None)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("clocks")
    gateway, worker = Clock(folder / "gateway-clock"), Clock(folder / "worker-clock")
    parts = Parts(
        folder,
        heartbeat_seconds=0.3,
        lease_seconds=3,
        rate_limit="1000/minute",
        webhook_secret=SECRET,
        webhook_allow_private=True,
    )
    try:
        parts.start_valkey()
        parts.start_own_worker(worker.env)
        parts.start_gateway("tests.faults.sweeping_gateway", env=gateway.env)
        parts.wait_until_ready()
        with receiving() as hooks:
            yield Service(parts, gateway, worker, hooks)
    finally:
        parts.end()
        print(parts.log.read_text())


@pytest.fixture(
    params=["gateway +30h", "gateway -1h", "worker +1h", "worker -1h", "worker -7s"],
)
def wrong(service: Service, request: pytest.FixtureRequest) -> Iterator[Service]:
    """The service with one clock wrong."""
    part, how_far = request.param.split()
    clock = {"gateway": service.gateway, "worker": service.worker}[part]
    clock.shift(how_far)
    service.beat()
    yield service
    clock.shift("+0")
    service.beat()


def test_a_wrong_clock_changes_nothing(wrong: Service) -> None:
    began = wrong.now()
    stray = "0" * 32 + "-0.png"
    wrong.parts.store.put(stray, b"of a job in flight")
    assert wrong.parts.http.get("/readyz").status_code == 200

    kept = wrong.generate(deadline_seconds=300, webhook_url=wrong.hooks.url, seed=1)
    late = wrong.generate(deadline_seconds=0.2, n=4, num_inference_steps=50)
    job_id = wrong.parts.admit(prompt="a", n=10, num_inference_steps=50)
    eventually(lambda: wrong.job(job_id)["status"] == "in_progress")
    running = wrong.job(job_id)
    waiting = wrong.parts.http.get("/v1/admin/jobs", params={"state": "in_progress"}).json()
    cancelled = wrong.parts.http.post(f"/v1/jobs/{job_id}/cancel")
    eventually(lambda: wrong.job(job_id)["status"] == "cancelled")
    wrong.sweep()
    ended = wrong.now()

    assert kept.status_code == 200, kept.text
    assert (late.status_code, late.json()["error"]["code"]) == (504, "deadline_exceeded")
    assert cancelled.is_success
    check_times(wrong, kept.json()["id"], began, ended)
    check_times(wrong, job_id, began, ended)
    timings = kept.json()["timings"]
    spent = timings["queued_seconds"] + timings["run_seconds"]
    assert abs(timings["total_seconds"] - spent) < 0.01
    assert 0 < timings["run_seconds"] <= timings["total_seconds"] < ended - began
    assert timings["denoise_seconds"] <= timings["run_seconds"]
    assert 0 <= running["eta_seconds"] < FAR
    assert 0 <= waiting["data"][0]["age_seconds"] < ended - began
    assert int(kept.headers["x-ratelimit-reset-requests"].rstrip("s")) <= 60
    check_webhook(wrong, kept.json()["id"])
    check_registries(wrong, kept.json()["id"], job_id)
    check_completed_once(wrong.parts, [kept.json()["id"]])
    [image] = kept.json()["data"]
    assert wrong.parts.http.get(image["url"]).status_code == 200
    assert wrong.parts.store.get(stray) == b"of a job in flight"
    assert wrong.parts.http.get("/readyz").status_code == 200


def check_times(service: Service, job_id: str, began: float, ended: float) -> None:
    job, ttl = service.job(job_id), service.parts.settings.result_ttl
    times = [job["created_at"], job["started_at"], job["completed_at"]]
    assert [began - 1, *times, ended + 1] == sorted([began - 1, *times, ended + 1])
    assert abs(job["expires_at"] - ttl - job["completed_at"]) < CLOSE


def check_webhook(service: Service, job_id: str) -> None:
    hooks = service.hooks
    eventually(
        lambda: (
            job_id in hooks.ids()
            and not service.parts.rig.redis.zcard(service.parts.rig.keys.outbox)
        )
    )
    [delivery] = [delivery for delivery in hooks.deliveries if delivery.id == job_id]
    # This refuses a signature whose time is five minutes off.
    assert delivery.verified(SECRET)["data"]["id"] == job_id


def check_registries(service: Service, finished: str, stopped: str) -> None:
    rig = service.parts.rig
    eventually(lambda: rig.leftovers() == [])
    for kind, job_id in ((FinishedJobRegistry, finished), (FailedJobRegistry, stopped)):
        score = rig.redis.zscore(kind(rig.settings.queue, rig.redis).key, job_id)
        assert score is not None
        assert abs(score - rig.settings.result_ttl - service.now()) < CLOSE
