"""Who gets in, and what they may do."""

import json
import logging
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest
from pydantic import SecretStr

from koala.keyfile import remove_key
from koala.settings import Settings
from tests.service.fakes import FakeWorker, Served, serving, wait_until
from tests.service.keyed import (
    GENERATIONS,
    asking,
    bearer,
    make_key,
    openai_client,
    post,
    secret_of,
    with_keys,
)
from tests.service.test_run import alive, command, process
from tests.support import free_port

MODELS = "/v1/models"
JOB = f"/v1/jobs/job_{'0' * 32}"
KEYED = [("POST", GENERATIONS), ("GET", "/v1/jobs"), ("GET", JOB), ("GET", "/v1/models")]


@pytest.fixture
def asked(settings: Settings) -> Iterator[Served]:
    with asking(settings) as served:
        yield served


@pytest.mark.parametrize(("method", "path"), [*KEYED, ("GET", "/v1/models/koala-demo")])
@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "Bearer",
        "Bearer nobody's-key",
        f"Bearer {secret_of('alice')}x",
        f"Bearer {secret_of('alice')[:-1]}",
        f"Basic {secret_of('alice')}",
        secret_of("alice"),
        "Bearer \xfc\xff",
    ],
)
def test_without_a_valid_key_nobody_gets_in(
    asked: Served, worker: FakeWorker, method: str, path: str, header: str | None
) -> None:
    headers = [] if header is None else [(b"Authorization", header.encode("latin-1"))]
    response = asked.http.request(
        method, path, json={"prompt": "a"} if method == "POST" else None, headers=headers
    )
    assert response.status_code == 401
    error = response.json()["error"]
    assert (error["type"], error["code"]) == ("invalid_request_error", "invalid_api_key")
    assert error["message"].endswith(".")
    assert response.headers["www-authenticate"] == "Bearer"
    assert response.headers["x-should-retry"] == "false"
    assert worker.waiting() == []


def test_no_route_of_the_api_forgets_to_ask(asked: Served) -> None:
    paths = asked.http.get("/openapi.json").json()["paths"]
    keyed = [
        (method, path)
        for path, item in paths.items()
        if path.startswith("/v1/") and path != "/v1/images/{name}"
        for method in item
    ]
    assert len(keyed) >= len(KEYED)
    for method, path in keyed:
        assert asked.http.request(method, path.format(id="x")).status_code == 401, path
        assert paths[path][method]["security"] == [{"ApiKey": []}], path
        assert {"401", "403"} <= paths[path][method]["responses"].keys(), path


def test_a_key_lets_in_by_any_spelling_of_bearer(asked: Served) -> None:
    for scheme in ("Bearer", "bearer", "BEARER"):
        header = {"Authorization": f"{scheme} {secret_of('alice')}"}
        assert asked.http.get("/v1/models", headers=header).status_code == 200


@pytest.mark.parametrize(
    "path", ["/", "/admin", "/docs", "/openapi.json", "/healthz", "/metrics", "/nothing-here"]
)
def test_what_machines_and_newcomers_look_at_stays_open(asked: Served, path: str) -> None:
    assert asked.http.get(path).status_code in (200, 404)
    assert asked.http.get("/readyz").status_code == 503


def test_a_stranger_is_refused_before_the_body_is_looked_at(asked: Served) -> None:
    for body in (b"{", b" " * (asked.settings.max_body_bytes + 1)):
        response = asked.http.post(
            GENERATIONS, content=body, headers={"Content-Type": "application/json"}
        )
        assert response.status_code == 401


@pytest.mark.parametrize(
    ("scopes", "method", "path", "missing"),
    [
        (("read",), "POST", GENERATIONS, "generate"),
        (("generate",), "GET", "/v1/jobs", "read"),
        (("generate",), "GET", JOB, "read"),
        (("generate",), "GET", "/v1/models", "read"),
        (("generate",), "GET", "/v1/models/koala-demo", "read"),
        (("generate",), "GET", f"/v1/images/{'0' * 32}-0.png", "read"),
    ],
)
def test_a_key_without_the_scope_is_refused_with_its_name(
    asked: Served, scopes: tuple[str, ...], method: str, path: str, missing: str
) -> None:
    make_key(asked.settings, "carl", *scopes)
    body = {"prompt": "a"} if method == "POST" else None
    refused: list[httpx.Response] = []

    def is_known() -> bool:
        refused.append(asked.http.request(method, path, json=body, headers=bearer("carl")))
        return refused[-1].status_code != 401

    wait_until(is_known)
    response = refused[-1]
    assert response.status_code == 403
    error = response.json()["error"]
    assert error["code"] == "insufficient_permissions"
    assert f"`{missing}`" in error["message"]
    assert "'carl'" in error["message"]


def test_an_admin_may_do_everything(asked: Served) -> None:
    assert post(asked, "root").status_code == 202
    for path in ("/v1/jobs", "/v1/models"):
        assert asked.http.get(path, headers=bearer("root")).status_code == 200


@pytest.mark.parametrize(
    ("highest", "asked_for", "status"),
    [
        ("high", "high", 202),
        ("normal", "high", 403),
        ("normal", "normal", 202),
        ("low", "normal", 403),
        ("low", "low", 202),
    ],
)
def test_a_priority_above_the_keys_own_is_refused_by_name(
    settings: Settings, highest: str, asked_for: str, status: int
) -> None:
    keyed = with_keys(settings)
    make_key(keyed, "carl", priority=highest)
    with serving(keyed) as served:
        response = post(served, "carl", priority=asked_for)
        assert response.status_code == status
        if status == 403:
            error = response.json()["error"]
            assert error["param"] == "priority"
            assert highest in error["message"]


@pytest.mark.parametrize(("highest", "given"), [("high", "normal"), ("low", "low")])
def test_a_request_without_a_priority_gets_no_more_than_the_key_allows(
    settings: Settings, worker: FakeWorker, highest: str, given: str
) -> None:
    keyed = with_keys(settings)
    make_key(keyed, "carl", priority=highest)
    with serving(keyed) as served:
        spec = worker.spec(post(served, "carl").json()["id"])
        assert (spec.priority, spec.owner) == (given, "carl")


def test_keys_of_the_environment_and_of_the_file_work_side_by_side(settings: Settings) -> None:
    with asking(settings.model_copy(update={"api_keys": _secret("dora")})) as served:
        for name in ("alice", "dora"):
            assert post(served, name).status_code == 202
        assert served.http.get("/v1/jobs", headers=bearer("dora")).status_code == 200


def test_a_change_of_the_file_is_noticed_without_a_restart(asked: Served) -> None:
    file = asked.settings.api_keys_file
    assert file is not None
    assert post(asked, "carl").status_code == 401
    make_key(asked.settings, "carl")
    wait_until(lambda: post(asked, "carl").status_code == 202)
    remove_key(file, "carl")
    wait_until(lambda: post(asked, "carl").status_code == 401)
    assert post(asked, "alice").status_code == 202


def test_removing_the_last_key_opens_the_gateway_to_nobody(asked: Served) -> None:
    file = asked.settings.api_keys_file
    assert file is not None
    for name in ("alice", "bob", "root"):
        remove_key(file, name)
    wait_until(lambda: post(asked, "alice").status_code == 401)
    assert post(asked, None).status_code == 401


def test_a_file_without_keys_lets_nobody_in(settings: Settings) -> None:
    file = settings.data_dir / "keys.json"
    file.write_text('{"keys": []}')
    with serving(settings.model_copy(update={"api_keys_file": file})) as served:
        assert post(served, None).status_code == post(served, "alice").status_code == 401


@pytest.mark.parametrize("content", ["{", '{"version": 3, "keys": []}', None])
def test_a_file_that_breaks_later_changes_nothing_but_the_log(
    asked: Served, caplog: pytest.LogCaptureFixture, content: str | None
) -> None:
    file = asked.settings.api_keys_file
    assert file is not None
    with caplog.at_level(logging.ERROR):
        if content is None:
            file.unlink()
        else:
            file.write_text(content)

        def has_complained() -> bool:
            assert post(asked, "alice").status_code == 202
            return str(file) in caplog.text

        wait_until(has_complained)
        assert post(asked, None).status_code == 401


def test_a_broken_file_counts_again_once_it_is_mended(
    asked: Served, caplog: pytest.LogCaptureFixture
) -> None:
    file = asked.settings.api_keys_file
    assert file is not None
    good = file.read_text()
    file.write_text("{")
    with caplog.at_level(logging.ERROR):
        wait_until(lambda: post(asked, "carl").status_code == 401 and str(file) in caplog.text)
    file.write_text(good)
    make_key(asked.settings, "carl")
    wait_until(lambda: post(asked, "carl").status_code == 202)


def test_without_keys_any_key_or_none_will_do(served: Served) -> None:
    assert post(served, "anybody").status_code == post(served, None).status_code == 202


def test_the_unmodified_openai_client_raises_its_own_errors(settings: Settings) -> None:
    keyed = with_keys(settings)
    make_key(keyed, "reader", "read")
    with serving(keyed) as served:
        with (
            openai_client(served, "stranger", max_retries=2) as client,
            pytest.raises(openai.AuthenticationError) as unknown,
        ):
            client.images.generate(prompt="a koala")
        assert unknown.value.code == "invalid_api_key"
        with (
            openai_client(served, "reader", max_retries=2) as client,
            pytest.raises(openai.PermissionDeniedError) as forbidden,
        ):
            client.images.generate(prompt="a koala")
        assert forbidden.value.code == "insufficient_permissions"
        with openai_client(served, "reader") as client:
            assert [model.id for model in client.models.list()] == ["koala-demo"]


def _secret(name: str) -> SecretStr:
    return SecretStr(f"{name}:{secret_of(name)}")


def test_the_openai_client_draws_with_its_key(settings: Settings, worker: FakeWorker) -> None:
    with (
        asking(settings) as served,
        worker.working(),
        openai_client(served, "alice") as client,
    ):
        response = client.images.generate(prompt="a koala")
        assert response.data is not None
        # As <img> would: without the key.
        assert httpx.get(str(response.data[0].url)).status_code == 200


def test_the_description_says_where_a_key_is_needed(settings: Settings, served: Served) -> None:
    def described(gateway: Served) -> dict[str, object]:
        document = gateway.http.get("/openapi.json").json()
        assert document["components"]["securitySchemes"]["ApiKey"]["scheme"] == "bearer"
        return {
            path: operation.get("security")
            for path, item in document["paths"].items()
            for operation in item.values()
        }

    assert set(map(str, described(served).values())) == {"None"}
    with asking(settings) as asked:
        security = described(asked)
        assert security[GENERATIONS] == security["/v1/jobs/{id}"] == [{"ApiKey": []}]
        assert security["/v1/images/{name}"] == [{"ApiKey": []}, {}]
        assert security["/healthz"] is security["/metrics"] is None


def test_with_keys_the_gateway_listens_to_other_machines_and_logs_who_called(
    tmp_path: Path,
) -> None:
    port = free_port()
    keys = f"alice:{secret_of('alice')}"
    settings = {"data_dir": tmp_path, "port": port, "host": "0.0.0.0", "log_format": "json"}
    with process(**settings, api_keys=keys) as running:
        base_url = f"http://127.0.0.1:{port}"
        wait_until(lambda: alive(base_url))
        assert httpx.get(f"{base_url}/v1/models").status_code == 401
        assert httpx.get(f"{base_url}/v1/models", headers=bearer("alice")).status_code == 200
        running.terminate()
        _, log = running.communicate(timeout=120)
    lines = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    models = [(line["status"], line.get("key")) for line in lines if line.get("path") == MODELS]
    assert models == [(401, None), (200, "alice")]
    assert secret_of("alice") not in log


@pytest.mark.parametrize(
    ("content", "settings", "says"),
    [
        (None, {}, "does not exist; `koala keys add NAME` makes it"),
        ("{", {}, "no file of API keys"),
        ('{"keys": []}', {"private_images": 1, "api_keys_file": ""}, "KOALA_PRIVATE_IMAGES"),
    ],
)
@pytest.mark.parametrize("part", ["serve", "up"])
def test_keys_that_cannot_be_read_at_the_start_are_one_clear_line(
    tmp_path: Path, part: str, content: str | None, settings: dict[str, object], says: str
) -> None:
    file = tmp_path / "keys.json"
    if content is not None:
        file.write_text(content)
    given = {"data_dir": tmp_path, "port": free_port(), "api_keys_file": file} | settings
    arguments, env = command(**given)
    arguments[-1] = part
    done = subprocess.run(arguments, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    line = done.stderr.splitlines()[0 if part == "serve" else -1]
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert line.startswith("koala:")
