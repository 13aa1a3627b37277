"""What a client sends is quoted in errors and log lines, but never at length."""

import logging

import httpx
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from starlette.exceptions import HTTPException

from service import errors
from tests.service.fakes import Served, wait_until

GENERATIONS = "/v1/images/generations"
LONG = "x" * 20_000


def post(**fields: object) -> dict[str, object]:
    return {"method": "POST", "url": GENERATIONS, "json": {"prompt": "a"} | fields}


def get(path: str, **headers: str) -> dict[str, object]:
    return {"method": "GET", "url": path, "headers": headers}


REQUESTS = {
    "unknown field": post(**{LONG: 1}),
    "unknown field of a LoRA": post(lora=[{"name": "a", LONG: 1}]),
    "unknown field in escapes": post(**{"\u202e" * 20_000: 1}),
    "unknown fields": post(**{f"f{i}": 1 for i in range(5_000)}),
    "model": post(model=LONG),
    "size": post(size=LONG),
    "quality": post(quality=LONG),
    "scheduler": post(scheduler=LONG),
    "seed": post(seed=LONG),
    "priority": post(priority=LONG),
    "webhook_url": post(webhook_url=f"http://{LONG}"),
    "LoRA": post(lora=[{"name": LONG}]),
    "user": post(user=LONG),
    "address": get(f"/{LONG}"),
    "wrong method": {"method": "PUT", "url": f"/v1/jobs/{LONG}"},
    "unknown method": {"method": LONG, "url": "/v1/jobs"},
    "job": get(f"/v1/jobs/{LONG}"),
    "job's events": get(f"/v1/jobs/{LONG}/events"),
    "image": get(f"/v1/images/{LONG}"),
    "model's address": get(f"/v1/models/{LONG}"),
    "part of the playground": get(f"/playground/{LONG}"),
    "limit": get(f"/v1/jobs?limit={LONG}"),
    "after": get(f"/v1/jobs?after={LONG}"),
    "wait": get(f"/v1/jobs/job_{'0' * 32}?wait={LONG}"),
    "state": get(f"/v1/admin/jobs?state={LONG}"),
    "Host": get("/v1/jobs", Host=LONG),
    "malformed Host": get("/v1/jobs", Host=f"{LONG} x"),
    "Idempotency-Key": post() | {"headers": {"Idempotency-Key": LONG}},
    "Content-Type": {"method": "POST", "url": GENERATIONS, "headers": {"Content-Type": LONG}},
    "Content-Encoding": post() | {"headers": {"Content-Encoding": LONG}},
    "X-Request-ID": get("/nothing", **{"X-Request-ID": LONG}),
}


@pytest.mark.parametrize("request_", REQUESTS.values(), ids=REQUESTS.keys())
def test_an_error_quotes_what_it_is_about_but_never_at_length(
    api: Served, request_: dict[str, object], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        response = api.http.request(**request_)  # type: ignore[arg-type]
        # The line comes after the answer.
        wait_until(lambda: bool(our_lines(caplog)))
    assert 400 <= response.status_code < 500
    assert response.json()["error"].keys() == {"message", "type", "param", "code"}
    assert len(response.content) < 4_000
    assert sum(len(name) + len(value) for name, value in response.headers.items()) < 2_000
    assert max(map(len, our_lines(caplog))) < 2_000


def our_lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What the gateway itself has logged, and not the libraries beside it."""
    names = ("service", "koala")
    lines = list(caplog.records)
    return [line.getMessage() for line in lines if line.name.partition(".")[0] in names]


@pytest.fixture
def plain() -> httpx.Client:
    """An application whose only trouble is the status in its path."""
    app = FastAPI()
    errors.install(app)

    @app.get("/{status}")
    def fail(status: int, detail: str | None = None) -> None:
        raise HTTPException(status, detail)

    return TestClient(app)


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (400, "bad_request", "invalid_request_error"),
        (402, "payment_required", "invalid_request_error"),
        (406, "not_acceptable", "invalid_request_error"),
        (410, "gone", "invalid_request_error"),
        (418, "im_a_teapot", "invalid_request_error"),
        (429, "too_many_requests", "rate_limit_error"),
        (499, "http_499", "invalid_request_error"),
        (501, "not_implemented", "server_error"),
        (503, "service_unavailable", "server_error"),
    ],
)
def test_an_http_error_without_a_class_of_its_own_is_told_as_what_it_is(
    plain: httpx.Client, status: int, code: str, kind: str
) -> None:
    response = plain.get(f"/{status}?detail=The cat did it")
    assert response.status_code == status
    error = response.json()["error"]
    assert (error["code"], error["type"]) == (code, kind)
    assert error["message"] == "The cat did it."
    assert "JSON" not in plain.get(f"/{status}").text
    assert len(plain.get(f"/{status}?detail={LONG}").content) < 1_000
