"""What cannot be read of what is stored spoils nothing for the rest."""

import json
import zlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from rq.job import Job
from rq.results import Result
from rq.serializers import JSONSerializer

from koala.events import EventType, JobEvent
from koala.settings import Settings
from tests.garbage_keys import DAMAGE, damage, litter
from tests.service.fakes import FakeWorker, Served, serving, wait_until
from tests.service.keyed import asking, bearer, submit

GENERATIONS = "/v1/images/generations"


def admit(served: Served, **body: object) -> str:
    response = served.http.post(
        GENERATIONS, json={"prompt": "a koala"} | body, headers={"Prefer": "respond-async"}
    )
    assert response.status_code == 202, response.text
    return str(response.json()["id"])


def change_spec(worker: FakeWorker, job_id: str, **changes: object) -> None:
    """Store a job's spec as another version would have."""
    key = worker.keys.job(job_id)
    function, instance, args, kwargs = json.loads(zlib.decompress(worker.redis.hget(key, "data")))
    kwargs["spec"] |= changes
    data = json.dumps([function, instance, args, kwargs]).encode()
    worker.redis.hset(key, "data", zlib.compress(data))


def listed(served: Served, path: str = "/v1/jobs") -> tuple[list[str], list[str]]:
    """Ids of the jobs that a list shows, and of those that it cannot."""
    response = served.http.get(path)
    assert response.status_code == 200, response.text
    body = response.json()
    return [job["id"] for job in body["data"]], [job["id"] for job in body["unreadable"]]


def test_a_field_of_a_newer_version_does_not_keep_a_job_from_being_shown(
    served: Served, worker: FakeWorker
) -> None:
    job_id = admit(served)
    change_spec(worker, job_id, style="watercolour", lora=[{"name": "a", "layers": 3}])

    assert listed(served) == ([job_id], [])
    assert listed(served, "/v1/admin/jobs?state=queued") == ([job_id], [])
    assert served.http.get(f"/v1/jobs/{job_id}").json()["prompt"] == "a koala"
    assert served.http.post(f"/v1/jobs/{job_id}/cancel").json()["status"] == "cancelled"


def test_results_and_events_of_a_newer_version_are_shown(
    served: Served, worker: FakeWorker
) -> None:
    job_id = admit(served)
    worker.take()
    worker.tell(job_id, JobEvent(EventType.STEP, {"step": 3, "steps": 10, "mood": "good"}))
    worker.redis.xadd(worker.keys.events(job_id), {"type": "dreamt", "data": "{}"})

    assert served.http.get(f"/v1/jobs/{job_id}").json()["progress"] == {"step": 3, "steps": 10}

    worker.finish(job_id)
    job = Job.fetch(job_id, worker.redis, JSONSerializer)
    result = job.latest_result()
    assert result is not None
    value = result.return_value | {"mood": "better"}
    Result.create(job, Result.Type.SUCCESSFUL, ttl=600, return_value=value)

    body = served.http.get(f"/v1/jobs/{job_id}").json()
    assert len(body["result"]["data"]) == 1


def test_a_job_that_cannot_be_read_is_listed_as_such_and_counted_once(
    served: Served, worker: FakeWorker
) -> None:
    first, bad, last = (admit(served, seed=i) for i in range(3))
    change_spec(worker, bad, width="as wide as the sea")

    for _ in range(3):
        assert listed(served) == ([last, first], [bad])
        assert listed(served, "/v1/admin/jobs?state=queued") == ([first, last], [bad])
    page = served.http.get("/v1/jobs?limit=2").json()
    assert (page["last_id"], page["has_more"]) == (bad, True)
    rest = served.http.get(f"/v1/jobs?limit=2&after={bad}").json()
    assert [job["id"] for job in rest["data"]] == [first]
    response = served.http.get(f"/v1/jobs/{bad}")
    assert response.status_code == 500
    error = response.json()["error"]
    assert error["code"] == "job_unreadable"
    assert "width" in error["message"]
    assert "sea" not in error["message"]
    assert served.metric('koala_unreadable_records_total{kind="job"}') == 1


def test_an_unreadable_job_of_another_owner_does_not_exist(settings: Settings) -> None:
    with asking(settings) as served:
        job_id = submit(served, "alice")
        worker = FakeWorker(served.settings)
        change_spec(worker, job_id, n="many")
        worker.redis.close()

        def status(name: str) -> int:
            return served.http.get(f"/v1/jobs/{job_id}", headers=bearer(name)).status_code

        assert [status(name) for name in ("alice", "bob", "root")] == [500, 404, 500]


def test_a_completed_job_without_a_readable_result_is_shown_with_the_reason(
    served: Served, worker: FakeWorker
) -> None:
    job_id = admit(served)
    worker.finish(worker.take())
    worker.redis.set(worker.keys.results(job_id), "nonsense")

    body = served.http.get(f"/v1/jobs/{job_id}").json()

    assert body["status"] == "completed"
    assert body["result"] is None
    assert body["error"]["code"] == "result_lost"


def test_workers_of_another_version_are_named(served: Served, worker: FakeWorker) -> None:
    worker.advertise(name="known")
    raw = json.loads(worker.redis.hget(worker.keys.workers, "known"))
    worker.redis.hset(
        worker.keys.workers, "newer", json.dumps(raw | {"name": "newer", "rows": {"unet": 8}})
    )
    worker.redis.hset(worker.keys.workers, "odd", b"\xff{")

    body = served.http.get("/v1/admin/workers").json()

    assert [each["name"] for each in body["data"]] == ["known"]
    assert body["unreadable"] == ["newer"]
    assert served.http.get("/readyz").status_code == 200


@pytest.mark.parametrize("ended", [False, True])
def test_whatever_is_stored_lists_and_other_jobs_go_on(settings: Settings, ended: bool) -> None:
    """Garbage at the keys of one job, and among the entries that all jobs share."""
    worker = FakeWorker(settings)
    with serving(settings) as served:

        @given(st.lists(DAMAGE, min_size=1, max_size=3))
        @hypothesis_settings(max_examples=25, deadline=None)
        def damaged(damages: list[tuple[str, Any]]) -> None:
            worker.redis.flushdb()
            bad = admit(served, seed=1)
            if ended:
                worker.finish(worker.take())
            for where, what in damages:
                damage(worker.redis, worker.keys, bad, where, what)
            litter(worker.redis, worker.keys)
            good = admit(served, seed=2)

            for path in ("/v1/jobs", "/v1/admin/jobs?state=in_progress"):
                assert served.http.get(path).status_code == 200
            shown, unreadable = listed(served)
            assert good in shown
            assert bad in (*shown, *unreadable)
            assert served.http.get(f"/v1/jobs/{bad}").status_code in (200, 404, 500)
            assert served.http.get(f"/v1/jobs/{good}").json()["eta_seconds"] is None
            assert served.http.get("/v1/admin/summary").status_code == 200
            assert served.metric("koala_redis_up") == 1
            worker.redis.lrem(worker.keys.pending, 0, bad)
            worker.finish(worker.take())
            wait_until(lambda: served.http.get(f"/v1/jobs/{good}").json()["status"] == "completed")

        damaged()
    worker.redis.close()
