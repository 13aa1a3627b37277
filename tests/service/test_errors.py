"""Errors that are not about one field: bodies, addresses, methods, trouble behind the gateway."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from httpx import Response

from koala.queue import JobQueue
from koala.settings import Settings
from tests.service.fakes import Served, serving

GENERATIONS = "/v1/images/generations"
JSON = {"Content-Type": "application/json"}


def code_of(response: Response) -> str:
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"]
    error = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["message"].endswith(".")
    return str(error["code"])


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"not json",
        b'{"prompt": "a",}',
        b'{"prompt": "\xff"}',
        b"[" * 100_000,
        b'{"prompt": "a", "seed": ' + b"9" * 5000 + b"}",
    ],
)
def test_malformed_json_is_a_400(api: Served, body: bytes) -> None:
    response = api.http.post(GENERATIONS, content=body, headers=JSON)
    assert response.status_code == 400
    assert code_of(response)
    assert "JSON" in response.json()["error"]["message"]


@pytest.mark.parametrize("body", [b"", b"[]", b'"a koala"', b"null", b"3"])
def test_a_body_that_is_no_object_is_a_400(api: Served, body: bytes) -> None:
    response = api.http.post(GENERATIONS, content=body, headers=JSON)
    assert response.status_code == 400
    assert code_of(response) == "invalid_json"
    assert "JSON object" in response.json()["error"]["message"]


@pytest.mark.parametrize(
    "content_type", [None, "", "text/plain", "application/x-www-form-urlencoded", "json"]
)
def test_a_body_of_another_type_is_a_415(api: Served, content_type: str | None) -> None:
    headers = {} if content_type is None else {"Content-Type": content_type}
    response = api.http.post(GENERATIONS, content=b'{"prompt": "a"}', headers=headers)
    assert response.status_code == 415
    assert code_of(response) == "unsupported_media_type"


@pytest.mark.parametrize(
    "content_type", ["application/json; charset=utf-8", "Application/JSON", "application/x+json"]
)
def test_json_by_any_name_is_read(api: Served, content_type: str) -> None:
    headers = {"Content-Type": content_type, "Prefer": "respond-async"}
    response = api.http.post(GENERATIONS, content=b'{"prompt": "a"}', headers=headers)
    assert response.status_code == 202


def chunks(size: int) -> Iterator[bytes]:
    for _ in range(size // 1000):
        yield b" " * 1000


def test_a_body_over_the_limit_is_a_413(api: Served) -> None:
    limit = api.settings.max_body_bytes
    response = api.http.post(GENERATIONS, content=b" " * (limit + 1), headers=JSON)
    assert response.status_code == 413
    assert code_of(response) == "request_too_large"
    assert str(limit) in response.json()["error"]["message"]


def test_a_body_of_unknown_length_over_the_limit_is_a_413(api: Served) -> None:
    limit = api.settings.max_body_bytes
    response = api.http.post(GENERATIONS, content=chunks(2 * limit), headers=JSON)
    assert response.status_code == 413
    assert code_of(response) == "request_too_large"


def test_a_body_just_at_the_limit_is_read(api: Served) -> None:
    limit = api.settings.max_body_bytes
    body = b'{"prompt": "a"}'.ljust(limit)
    headers = JSON | {"Prefer": "respond-async"}
    assert api.http.post(GENERATIONS, content=body, headers=headers).status_code == 202


@pytest.mark.parametrize("path", ["/nothing", "/v1", "/v1/models/", "/v1/images/generations/"])
def test_an_unknown_address_is_a_404(api: Served, path: str) -> None:
    response = api.http.get(path)
    assert response.status_code == 404
    assert code_of(response) in ("not_found", "model_not_found")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", GENERATIONS, "POST"),
        ("DELETE", "/v1/jobs", "GET"),
        ("POST", "/v1/models", "GET"),
        ("PUT", "/healthz", "GET"),
    ],
)
def test_a_wrong_method_is_a_405_that_says_which_is_right(
    api: Served, method: str, path: str, allowed: str
) -> None:
    response = api.http.request(method, path)
    assert response.status_code == 405
    assert code_of(response) == "method_not_allowed"
    assert allowed in response.headers["allow"]


@pytest.mark.parametrize("query", ["limit=0", "limit=101", "limit=x", "limit=1.5", "limit="])
def test_a_limit_out_of_range_is_refused_by_name(api: Served, query: str) -> None:
    response = api.http.get(f"/v1/jobs?{query}")
    assert response.status_code == 400
    assert code_of(response) == "invalid_value"
    assert response.json()["error"]["param"] == "limit"
    assert "1 to 100" in response.json()["error"]["message"]


@pytest.mark.parametrize("wait", ["-1", "nan", "inf", "x", "301"])
def test_a_wait_out_of_range_is_refused_by_name(api: Served, wait: str) -> None:
    response = api.http.get(f"/v1/jobs/job_{'0' * 32}?wait={wait}")
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "wait"


def test_a_full_queue_is_a_429_with_retry_after(settings: Settings) -> None:
    with serving(settings.model_copy(update={"max_queued": 1})) as served:
        submit = {"json": {"prompt": "a"}, "headers": {"Prefer": "respond-async"}}
        assert served.http.post(GENERATIONS, **submit).status_code == 202
        response = served.http.post(GENERATIONS, **submit)
        assert response.status_code == 429
        assert code_of(response) == "queue_full"
        assert response.json()["error"]["type"] == "rate_limit_error"
        assert int(response.headers["retry-after"]) >= 1
        assert served.metric('koala_jobs_submitted_total{outcome="full"}') == 1


def test_without_redis_the_gateway_answers_503(tmp_path: Path) -> None:
    with serving(Settings(redis_url=f"unix://{tmp_path}/none.sock", data_dir=tmp_path)) as served:
        for response in (
            served.http.post(GENERATIONS, json={"prompt": "a"}),
            served.http.get("/v1/jobs"),
            served.http.get(f"/v1/jobs/job_{'0' * 32}"),
        ):
            assert response.status_code == 503
            assert code_of(response) == "queue_unavailable"
            assert int(response.headers["retry-after"]) >= 1
            assert "none.sock" not in response.text


def test_an_unexpected_error_is_a_500_that_tells_nothing_but_its_id(
    served: Served, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def faulty(self: JobQueue, job_id: str) -> None:
        raise RuntimeError("secret nonsense")

    monkeypatch.setattr(JobQueue, "get", faulty)
    with caplog.at_level(logging.ERROR):
        response = served.http.get(f"/v1/jobs/job_{'0' * 32}", headers={"X-Request-ID": "mine-7"})
    assert response.status_code == 500
    assert code_of(response) == "internal_error"
    assert "mine-7" in response.json()["error"]["message"]
    assert "secret" not in response.text
    assert "Traceback" not in response.text
    assert "unexpected error" in caplog.text
    assert "secret nonsense" in caplog.text


def test_a_sane_request_id_is_kept_and_any_other_replaced(api: Served) -> None:
    def answered(given: str | None) -> str:
        headers = {} if given is None else {"X-Request-ID": given}
        return str(api.http.get("/healthz", headers=headers).headers["x-request-id"])

    assert answered("abc-123") == "abc-123"
    for insane in (None, "", "a b", "x" * 129, "<script>"):
        assert answered(insane).startswith("req_")
    assert answered(None) != answered(None)


def test_the_api_description_knows_our_errors_and_no_other(api: Served) -> None:
    description = api.http.get("/openapi.json").json()
    assert "HTTPValidationError" not in json.dumps(description)
    operation = description["paths"][GENERATIONS]["post"]
    for status in ("400", "404", "413", "415", "422", "429", "503", "504"):
        schema = operation["responses"][status]["content"]["application/json"]["schema"]
        assert schema == {"$ref": "#/components/schemas/ErrorBody"}
    request = description["components"]["schemas"]["GenerationRequest"]
    assert request["required"] == ["prompt"]
    assert request["additionalProperties"] is False
    assert "ImagesResponse" in description["components"]["schemas"]
    assert api.http.get("/docs").status_code == 200
