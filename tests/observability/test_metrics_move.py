"""Every metric of a whole running service moves when what it counts happens, on both sides."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from redis import Redis

from koala.connections import connect
from koala.expiry import ExpiringImages
from koala.keys import Keys
from tests.observability.conftest import Observed
from tests.observability.test_metrics_table import documented
from tests.service.fakes import wait_until
from tests.service.webhook_rig import receiving

PATH = "/v1/images/generations"

# What a healthy service without a GPU does not do, and the test that makes it happen.
HELD_ELSEWHERE = {
    "koala_http_connections_closed_total": "tests/service/test_slow_clients.py",
    "koala_images_blocked_total": "tests/test_safety_end_to_end.py",
    "koala_jobs_requeued_total": "tests/worker/test_leases.py",
    "koala_leases_lost_total": "tests/worker/test_leases.py",
    "koala_out_of_memory_total": "tests/worker/engine/test_out_of_memory.py",
    "koala_samples_put_back_total": "tests/worker/engine/test_out_of_memory.py",
    "koala_vae_upcasts_total": "tests/worker/engine/test_overflow.py",
}
# Each of these has to move for each of its operations: an alert watches the errors.
STORE = {
    "gateway": {
        ("koala_image_store_seconds", "get"),
        ("koala_image_store_seconds", "delete"),
        ("koala_image_store_errors_total", "get"),
    },
    "worker": {
        ("koala_image_store_seconds", "put"),
        ("koala_image_store_errors_total", "put"),
    },
}

Counts = dict[tuple[str, str], float]


def counts(observed: Observed, part: str) -> Counts:
    """What a part has counted so far: by metric and, of the image store, by operation."""
    found: Counts = {}
    for family in text_string_to_metric_families(observed.scrape(part)):
        for sample in family.samples:
            if sample.name.endswith(("_total", "_count")):
                name = sample.name.removesuffix("_count")
                key = (name, sample.labels.get("operation", ""))
                found[key] = found.get(key, 0.0) + sample.value
    return found


class Client:
    """Does everything that a client and time can do to a service."""

    def __init__(self, observed: Observed, redis: Redis) -> None:
        self.stack = observed.stack
        self.http = httpx.Client(base_url=observed.stack.base_url, timeout=60, trust_env=False)
        self.redis = redis
        self.keys = Keys(self.stack.settings.queue)
        self.folder = Path(self.stack.settings.resolved_image_store)

    def draw(self, headers: dict[str, str] | None = None, **fields: Any) -> Any:
        body = {"prompt": "a koala"} | fields
        return self.http.post(PATH, json=body, headers=headers).raise_for_status().json()

    def submit(self, **fields: Any) -> str:
        return str(self.draw({"Prefer": "respond-async"}, **fields)["id"])

    def end(self, job_id: str) -> Any:
        return self.http.get(f"/v1/jobs/{job_id}", params={"wait": 30}).json()

    def images_as_files_and_in_json(self) -> None:
        self.http.get(self.draw()["data"][0]["url"]).raise_for_status()
        self.draw(response_format="b64_json")

    def long_prompt(self) -> None:
        self.draw(prompt="a koala " * 100)

    def same_request_twice(self) -> None:
        for _ in range(2):
            self.draw({"Idempotency-Key": f"twice-{id(self)}"})

    def watched_previews(self) -> None:
        job_id = self.submit(previews=4, num_inference_steps=20)
        with self.http.stream("GET", f"/v1/jobs/{job_id}/events") as response:
            assert "event: completed" in "".join(response.iter_text())

    def job_of_more_than_a_second(self) -> None:
        with self.stack.frozen_worker():
            job_id = self.submit(n=4)
            time.sleep(1.0)
        assert self.end(job_id)["status"] == "completed"

    def client_that_hangs_up(self) -> None:
        with self.stack.frozen_worker(), pytest.raises(httpx.ReadTimeout):
            httpx.post(self.stack.base_url + PATH, json={"prompt": "a"}, timeout=0.5)

    def webhook(self) -> None:
        with receiving() as receiver:
            receiver.hold.set()
            job_id = self.submit(webhook_url=receiver.url)
            self.end(job_id)
            wait_until(lambda: len(receiver.deliveries) == 1, 30)

    def image_that_cannot_be_stored(self) -> None:
        job_id = self.submit(n=4, num_inference_steps=50)
        wait_until(lambda: self.status(job_id) == "in_progress", 30)
        aside = self.folder.with_name("aside")
        with self.stack.frozen_worker():
            assert self.status(job_id) == "in_progress"
            # The bits of a folder do not stop root; a file in its place does.
            self.folder.rename(aside)
            self.folder.touch()
        error = self.end(job_id)["error"]
        self.folder.unlink()
        aside.rename(self.folder)
        assert error["code"] == "image_store_error"

    def image_that_cannot_be_read(self) -> None:
        url = self.draw()["data"][0]["url"]
        path = self.folder / url.rpartition("/")[2]
        path.unlink()
        path.mkdir()
        assert self.http.get(url).status_code >= 500
        path.rmdir()

    def record_that_cannot_be_read(self) -> None:
        job_id = self.submit()
        self.end(job_id)
        self.redis.hset(self.keys.job(job_id), "data", b"no job")
        unreadable = self.http.get("/v1/jobs").raise_for_status().json()["unreadable"]
        assert [record["id"] for record in unreadable] == [job_id]

    def image_that_expires(self) -> None:
        name = self.draw()["data"][0]["url"].rpartition("/")[2]
        [member] = [
            member
            for member in self.redis.zrange(self.keys.images, 0, -1)
            if ExpiringImages.decode(member).names == [name]
        ]
        self.redis.zadd(self.keys.images, {member: 1})
        wait_until(lambda: not (self.folder / name).exists(), 90)

    def status(self, job_id: str) -> str:
        return str(self.http.get(f"/v1/jobs/{job_id}").json()["status"])


@contextmanager
def a_client(observed: Observed) -> Iterator[Client]:
    with connect(observed.stack.settings) as redis:
        client = Client(observed, redis)
        try:
            yield client
        finally:
            client.http.close()


def test_every_counter_moves_when_what_it_counts_happens(observed: Observed) -> None:
    before = {part: counts(observed, part) for part in ("gateway", "worker")}
    with a_client(observed) as client:
        client.images_as_files_and_in_json()
        client.long_prompt()
        client.same_request_twice()
        client.watched_previews()
        client.job_of_more_than_a_second()
        client.client_that_hangs_up()
        client.webhook()
        client.image_that_cannot_be_stored()
        client.image_that_cannot_be_read()
        client.record_that_cannot_be_read()
        client.image_that_expires()

    tables = {part: documented(part.capitalize()) for part in before}
    for part, table in tables.items():
        expected = {name for name, (kind, _, _) in table.items() if kind != "gauge"}
        expected -= HELD_ELSEWHERE.keys()

        def still(part: str = part, expected: set[str] = expected) -> set[Any]:
            """What has not moved."""
            old, new = before[part], counts(observed, part)
            moved = {key for key, value in new.items() if value > old.get(key, 0.0)}
            return (expected - {name for name, _ in moved}) | (STORE[part] - moved)

        deadline = time.monotonic() + 20
        while still() and time.monotonic() < deadline:
            time.sleep(0.1)
        assert still() == set(), part
    assert HELD_ELSEWHERE.keys() <= {name for table in tables.values() for name in table}
