"""The operator's view: all jobs, whoever's they are, for who has the scope ``admin``."""

from collections.abc import Iterator
from typing import Any

import pytest

from koala.settings import Settings
from tests.service.fakes import FakeWorker, Served, wait_until
from tests.service.keyed import asking, bearer, submit
from tests.service.test_jobs import one_at_a_time
from tests.service.test_jobs import submit as submit_without_a_key

PATHS = ["summary", "workers", "jobs?state=queued", "jobs?state=in_progress"]
VRAM = {"total_bytes": 8, "free_bytes": 3, "held_bytes": 4, "weights_bytes": 2}


@pytest.fixture
def asked(settings: Settings) -> Iterator[Served]:
    with asking(settings) as served:
        yield served


def admin(served: Served, path: str, name: str | None = "root") -> Any:
    response = served.http.get(f"/v1/admin/{path}", headers=bearer(name) if name else {})
    assert response.status_code == 200, response.text
    return response.json()


def test_jobs_of_all_owners_are_listed_in_the_order_of_the_queue(
    asked: Served, worker: FakeWorker
) -> None:
    worker.advertise(sizes=[one_at_a_time(1.0)])
    running, other = submit(asked, "alice", prompt="a banana", n=2), submit(asked, "root")
    assert worker.take() == running
    assert worker.take() == other
    worker.step(running, 4, 3)
    late = submit(asked, "alice", priority="low")
    next_one = submit(asked, "bob")

    jobs = admin(asked, "jobs?state=queued")
    assert [job["id"] for job in jobs["data"]] == [next_one, late]
    assert [job["position"] for job in jobs["data"]] == [0, 1]
    assert [job["owner"] for job in jobs["data"]] == ["bob", "alice"]
    assert [job["priority"] for job in jobs["data"]] == ["normal", "low"]
    assert jobs["has_more"] is False
    assert all(0 <= job["age_seconds"] < 20 for job in jobs["data"])

    held = admin(asked, "jobs?state=in_progress")["data"]
    assert [job["id"] for job in held] == [running, other]
    first, second = held
    assert first["progress"] == {"step": 7, "steps": 20}
    assert (first["owner"], first["worker"], first["prompt"]) == ("alice", "fake", "a banana")
    assert 0 < first["eta_seconds"] < second["eta_seconds"]

    first = admin(asked, "jobs?state=queued&limit=1")
    assert [job["id"] for job in first["data"]] == [next_one]
    assert first["has_more"] is True


def test_workers_are_listed_with_what_they_say_of_themselves(
    asked: Served, worker: FakeWorker
) -> None:
    worker.advertise(name="b", vram=VRAM, images_last_minute=9, images_per_second=1.5)
    worker.advertise(name="a", sizes=[one_at_a_time(1.0)], images_last_minute=3)
    worker.advertise(name="dead", expires_at="2020-01-01T00:00:00Z")
    first, second = admin(asked, "workers")["data"]
    assert (first["name"], second["name"]) == ("a", "b")
    [size] = first["sizes"]
    assert (size["size"], size["max_rows"], size["slowness"]) == ("64x64", 2, 1.0)
    assert (size["step_seconds"], size["decode_seconds"]) == ({"2": 1.0}, None)
    assert first["vram"] is None
    assert second["vram"] == VRAM
    assert isinstance(second["started_at"], int)

    submit(asked, "alice")
    submit(asked, "bob")
    worker.take()
    summary = admin(asked, "summary")
    oldest = summary.pop("oldest_queued_seconds")
    assert 0 <= oldest < 20
    assert summary == {
        "queued": 1,
        "in_flight": 1,
        "workers": 2,
        "images_last_minute": 12,
        "images_per_second": 1.5,
    }


def test_an_idle_service_has_a_summary_too(served: Served) -> None:
    assert admin(served, "summary", None) == {
        "queued": 0,
        "oldest_queued_seconds": None,
        "in_flight": 0,
        "workers": 0,
        "images_last_minute": 0,
        "images_per_second": None,
    }


@pytest.mark.parametrize("path", PATHS)
def test_keys_without_the_scope_admin_are_refused(asked: Served, path: str) -> None:
    nobody = asked.http.get(f"/v1/admin/{path}")
    assert nobody.status_code == 401
    alice = asked.http.get(f"/v1/admin/{path}", headers=bearer("alice"))
    assert alice.status_code == 403
    assert "`admin`" in alice.json()["error"]["message"]


def test_an_admin_cancels_anybodys_job(asked: Served, worker: FakeWorker) -> None:
    job_id = submit(asked, "alice")
    refused = asked.http.post(f"/v1/jobs/{job_id}/cancel", headers=bearer("bob"))
    assert refused.status_code == 404
    done = asked.http.post(f"/v1/jobs/{job_id}/cancel", headers=bearer("root"))
    assert done.json()["status"] == "cancelled"
    assert admin(asked, "jobs?state=queued")["data"] == []


def test_where_nobody_logs_in_the_view_is_open(served: Served) -> None:
    job_id = submit_without_a_key(served)
    wait_until(lambda: len(admin(served, "jobs?state=queued", None)["data"]) == 1)
    [job] = admin(served, "jobs?state=queued", None)["data"]
    assert (job["id"], job["owner"]) == (job_id, None)


@pytest.mark.parametrize("query", ["", "?state=completed", "?state=queued&limit=0"])
def test_a_list_that_cannot_be_had_is_a_400_that_names_the_parameter(
    served: Served, query: str
) -> None:
    response = served.http.get(f"/v1/admin/jobs{query}")
    assert response.status_code == 400
    assert response.json()["error"]["param"] in ("state", "limit")
