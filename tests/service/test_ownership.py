"""Jobs and images of one key are nothing to another."""

from collections.abc import Iterator

import pytest

from koala.settings import Settings
from tests.service.fakes import FakeWorker, Served, serving
from tests.service.keyed import asking, bearer, make_key, post, submit, with_keys


@pytest.fixture
def asked(settings: Settings) -> Iterator[Served]:
    with asking(settings) as served:
        yield served


def listed(served: Served, name: str, query: str = "") -> list[str]:
    response = served.http.get(f"/v1/jobs{query}", headers=bearer(name))
    assert response.status_code == 200
    return [job["id"] for job in response.json()["data"]]


def image_path(served: Served, worker: FakeWorker, name: str) -> str:
    job_id = submit(served, name)
    worker.finish(worker.take())
    job = served.http.get(f"/v1/jobs/{job_id}", headers=bearer(name)).json()
    return str(job["result"]["data"][0]["url"]).removeprefix(served.base_url)


@pytest.mark.parametrize("query", ["", "?wait=5"])
def test_a_job_of_another_key_is_a_job_that_never_was(asked: Served, query: str) -> None:
    job_id = submit(asked, "alice")
    never = f"job_{'0' * 32}"
    others = asked.http.get(f"/v1/jobs/{job_id}{query}", headers=bearer("bob"))
    nobodys = asked.http.get(f"/v1/jobs/{never}{query}", headers=bearer("bob"))
    assert others.status_code == nobodys.status_code == 404
    assert others.text == nobodys.text.replace(never, job_id)
    varying = {"date", "x-request-id"}
    assert {k: v for k, v in others.headers.items() if k not in varying} == {
        k: v for k, v in nobodys.headers.items() if k not in varying
    }


def test_the_owner_and_an_admin_see_a_job(asked: Served) -> None:
    job_id = submit(asked, "alice")
    for name in ("alice", "root"):
        response = asked.http.get(f"/v1/jobs/{job_id}", headers=bearer(name))
        assert response.status_code == 200
        assert "owner" not in response.json()
        assert "alice" not in response.text


def test_the_list_has_ones_own_jobs_alone_and_for_an_admin_all(asked: Served) -> None:
    first, second = submit(asked, "alice"), submit(asked, "bob")
    third, fourth = submit(asked, "alice"), submit(asked, "root")
    assert listed(asked, "alice") == [third, first]
    assert listed(asked, "bob") == [second]
    assert listed(asked, "root") == [fourth, third, second, first]
    assert listed(asked, "alice", f"?after={third}&limit=1") == [first]


def test_a_list_cannot_begin_behind_anothers_job(asked: Served) -> None:
    theirs, never = submit(asked, "bob"), f"job_{'0' * 32}"
    submit(asked, "alice")
    others = asked.http.get(f"/v1/jobs?after={theirs}", headers=bearer("alice"))
    nobodys = asked.http.get(f"/v1/jobs?after={never}", headers=bearer("alice"))
    assert others.status_code == 404
    assert others.json()["error"]["param"] == "after"
    assert others.text == nobodys.text.replace(never, theirs)


def test_an_image_of_another_key_is_an_image_that_never_was(
    asked: Served, worker: FakeWorker
) -> None:
    path = image_path(asked, worker, "alice")
    name = path.rsplit("/", 1)[1]
    never = f"{'0' * 32}-0.png"
    others = asked.http.get(path, headers=bearer("bob"))
    nobodys = asked.http.get(f"/v1/images/{never}", headers=bearer("bob"))
    assert others.status_code == nobodys.status_code == 404
    assert others.text == nobodys.text.replace(never, name)
    # What the cache of a proxy knows must not tell either.
    etag = asked.http.get(path, headers=bearer("alice")).headers["etag"]
    conditional = bearer("bob") | {"If-None-Match": etag}
    assert asked.http.get(path, headers=conditional).status_code == 404
    assert asked.http.head(path, headers=bearer("bob")).status_code == 404


@pytest.mark.parametrize("name", ["alice", "root", None])
def test_the_owner_an_admin_and_whoever_has_the_url_alone_get_an_image(
    asked: Served, worker: FakeWorker, name: str | None
) -> None:
    path = image_path(asked, worker, "alice")
    headers = {} if name is None else bearer(name)
    assert asked.http.get(path, headers=headers).status_code == 200


def test_an_unknown_key_does_not_get_what_no_key_would(asked: Served, worker: FakeWorker) -> None:
    path = image_path(asked, worker, "alice")
    assert asked.http.get(path, headers=bearer("stranger")).status_code == 401


def test_private_images_are_for_keys_alone(settings: Settings, worker: FakeWorker) -> None:
    with asking(settings, private_images=True) as asked:
        path = image_path(asked, worker, "alice")
        refused = asked.http.get(path)
        assert refused.status_code == 401
        assert refused.json()["error"]["code"] == "invalid_api_key"
        assert asked.http.get(path, headers=bearer("bob")).status_code == 404
        assert asked.http.get(path, headers=bearer("alice")).status_code == 200
        images = asked.http.get("/openapi.json").json()["paths"]["/v1/images/{name}"]
        assert images["get"]["security"] == [{"ApiKey": []}]


def test_jobs_from_before_there_were_keys_are_seen_by_admins_alone(
    settings: Settings, worker: FakeWorker
) -> None:
    with serving(settings) as served:
        job_id = post(served, None).json()["id"]
    with asking(settings) as asked:
        assert listed(asked, "alice") == []
        assert listed(asked, "root") == [job_id]
        status = asked.http.get(f"/v1/jobs/{job_id}", headers=bearer("alice")).status_code
        assert status == 404


def test_a_new_key_by_an_old_name_owns_the_jobs_of_that_name(settings: Settings) -> None:
    keyed = with_keys(settings)
    with serving(keyed) as served:
        job_id = submit(served, "alice")
    assert keyed.api_keys_file is not None
    keyed.api_keys_file.unlink()
    make_key(keyed, "alice", created_at="2030-01-01T00:00:00Z")
    with serving(keyed) as served:
        assert listed(served, "alice") == [job_id]
