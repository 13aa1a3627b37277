"""Jobs and images that earlier versions left behind: listed, polled and finished by this one."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.faults.parts import Parts, eventually, parts
from tests.fixtures import dump
from tests.fixtures.record import ALICE, BOB, bearer, settings, write_loras

FIXTURES = Path(__file__).parent / "fixtures"
VERSIONS = sorted(path.name for path in FIXTURES.iterdir() if (path / "redis.json").exists())


@dataclass
class Upgraded:
    """A service of this version on the data of an earlier one; no worker at first."""

    parts: Parts
    jobs: dict[str, dict[str, Any]]

    def get(self, path: str, key: str = ALICE) -> Any:
        """The JSON at a path."""
        response = self.parts.http.get(path, headers=bearer(key))
        assert response.status_code == 200, f"{path}: {response.text}"
        return response.json()

    def states(self) -> dict[str, str]:
        """How all jobs stand, by id."""
        return {job_id: self.get(f"/v1/jobs/{job_id}")["status"] for job_id in self.jobs}

    def check_images(self, body: dict[str, Any]) -> None:
        """Fetch the images of a completed job."""
        assert len(body["result"]["data"]) == body["n"]
        for image in body["result"]["data"]:
            if body["response_format"] == "b64_json":
                assert image["b64_json"]
            else:
                path = f"/v1/images/{image['url'].rsplit('/', 1)[1]}"
                assert self.parts.http.get(path).status_code == 200


@pytest.fixture(scope="module", params=VERSIONS)
def upgraded(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Upgraded]:
    folder, left = tmp_path_factory.mktemp("upgraded"), FIXTURES / request.param
    write_loras(folder)
    shutil.copytree(left / "images", folder / "images")
    with parts(folder, start_gateway=False, **settings(folder)) as running:
        dump.load(running.rig.redis, left / "redis.json")
        running.start_gateway()
        yield Upgraded(running, json.loads((left / "jobs.json").read_text()))


def test_every_job_is_listed_to_its_owner(upgraded: Upgraded) -> None:
    listed, after = [], ""
    while True:
        page = upgraded.get(f"/v1/jobs?limit=7{after}")
        listed += [(job["id"], job["status"]) for job in page["data"]]
        if not page["has_more"]:
            break
        after = f"&after={page['last_id']}"

    assert dict(listed) == {job_id: noted["status"] for job_id, noted in upgraded.jobs.items()}
    assert len(listed) == len(upgraded.jobs)
    for state in ("queued", "in_progress"):
        unfinished = upgraded.get(f"/v1/admin/jobs?state={state}")["data"]
        assert unfinished, state


def test_every_job_is_shown_as_it_stood(upgraded: Upgraded) -> None:
    for job_id, noted in upgraded.jobs.items():
        body = upgraded.get(f"/v1/jobs/{job_id}")
        assert {name: body[name] for name in ("status", "attempts", "error")} == {
            name: noted[name] for name in ("status", "attempts", "error")
        }
        if body["status"] == "completed":
            upgraded.check_images(body)


def test_the_events_of_an_ended_job_are_told_to_the_end(upgraded: Upgraded) -> None:
    for job_id, noted in upgraded.jobs.items():
        if noted["status"] in ("completed", "failed", "cancelled"):
            events = upgraded.parts.http.get(f"/v1/jobs/{job_id}/events", headers=bearer(ALICE))
            assert f"event: {noted['status']}" in events.text


def test_an_idempotency_key_still_stands_for_its_job(upgraded: Upgraded) -> None:
    keyed = {i: noted for i, noted in upgraded.jobs.items() if noted["idempotency_key"]}
    assert {noted["status"] for noted in keyed.values()} == {"completed", "queued"}
    for job_id, noted in keyed.items():
        response = upgraded.parts.http.post(
            "/v1/images/generations",
            json=noted["request"],
            headers=bearer(ALICE if noted["owner"] == "alice" else BOB)
            | {"Idempotency-Key": noted["idempotency_key"], "Prefer": "respond-async"},
        )
        assert response.is_success, response.text
        assert response.json()["id"] == job_id


def test_every_job_finishes(upgraded: Upgraded) -> None:
    running = upgraded.parts
    for job_id in running.rig.redis.zrange(running.rig.keys.leases, 0, -1):
        running.rig.expire_lease(job_id.decode())
    running.start_worker()
    expected = {
        job_id: "completed" if noted["status"] in ("queued", "in_progress") else noted["status"]
        for job_id, noted in upgraded.jobs.items()
    }

    eventually(lambda: upgraded.states() == expected, 120)

    for job_id, state in expected.items():
        if state == "completed":
            upgraded.check_images(upgraded.get(f"/v1/jobs/{job_id}"))
    eventually(lambda: running.rig.leftovers() == [])
    webhooks = [
        job_id
        for job_id, noted in upgraded.jobs.items()
        if (noted["request"] or {}).get("webhook_url")
    ]
    # Nothing listens at their address, so all are still due.
    outbox = running.rig.redis.zrange(running.rig.keys.outbox, 0, -1)
    assert sorted(job_id.decode() for job_id in outbox) == sorted(webhooks)
