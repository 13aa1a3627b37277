"""Log lines of real processes: one request can be followed from the gateway to the worker."""

import json
import re
from typing import Any

import httpx

from tests.observability.conftest import Observed
from tests.service.fakes import wait_until

GENERATIONS = "/v1/images/generations"
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


def lines(observed: Observed, part: str, event: str, **fields: object) -> list[dict[str, Any]]:
    """The log lines of a part about an event, with these fields."""
    # What is being written has no end of line yet.
    whole = observed.stack.log(part).rpartition("\n")[0].splitlines()
    parsed = [json.loads(line) for line in whole if line.startswith("{")]
    return [line for line in parsed if line["event"] == event and line.items() >= fields.items()]


def generate(observed: Observed, headers: dict[str, str], **fields: object) -> httpx.Response:
    response = httpx.post(
        observed.stack.base_url + GENERATIONS,
        json={"prompt": "a koala", "num_inference_steps": 4} | fields,
        headers=headers,
        timeout=240,
        trust_env=False,
    )
    assert response.is_success, response.text
    return response


def test_a_request_id_is_in_the_logs_of_gateway_and_worker(observed: Observed) -> None:
    response = generate(observed, {"X-Request-ID": "order-17:a"}, n=2)
    assert response.headers["x-request-id"] == "order-17:a"
    job_id = response.json()["id"]

    wait_until(lambda: bool(lines(observed, "gateway", "request", request_id="order-17:a")))
    [request] = lines(observed, "gateway", "request", request_id="order-17:a")
    assert request["job_id"] == job_id
    assert (request["method"], request["path"], request["status"]) == ("POST", GENERATIONS, 200)
    assert request["milliseconds"] > 0
    wait_until(lambda: bool(lines(observed, "worker", "a job ended", request_id="order-17:a")))
    [job] = lines(observed, "worker", "a job ended", request_id="order-17:a")
    assert job["job_id"] == job_id
    assert (job["status"], job["images"], job["steps"]) == ("finished", 2, 4)
    assert "trace_id" not in job


def test_the_line_of_a_job_has_the_times_of_its_stages(observed: Observed) -> None:
    job_id = generate(observed, {}).json()["id"]
    wait_until(lambda: bool(lines(observed, "worker", "a job ended", job_id=job_id)))
    [job] = lines(observed, "worker", "a job ended", job_id=job_id)
    stages = ("queue", "admission", "denoise", "decode", "store")
    seconds = [job[f"{stage}_seconds"] for stage in stages]
    assert all(each >= 0 for each in seconds)
    assert job["denoise_seconds"] > 0
    assert abs(sum(seconds) - job["total_seconds"]) < 0.01


def test_a_request_id_is_made_where_none_or_a_strange_one_comes(observed: Observed) -> None:
    url = observed.stack.base_url + "/v1/models"
    for headers in ({}, {"X-Request-ID": "a b"}, {"X-Request-ID": "x" * 129}):
        given = httpx.get(url, headers=headers, trust_env=False).headers["x-request-id"]
        assert re.fullmatch(r"req_[0-9a-f]{32}", given)
        wait_until(
            lambda given=given: bool(lines(observed, "gateway", "request", request_id=given))
        )


def test_a_clients_trace_is_in_both_logs_also_where_we_trace_nothing(observed: Observed) -> None:
    traceparent = f"00-{TRACE}-00f067aa0ba902b7-01"
    job_id = generate(observed, {"traceparent": traceparent}).json()["id"]
    wait_until(lambda: bool(lines(observed, "gateway", "request", trace_id=TRACE)))
    wait_until(lambda: bool(lines(observed, "worker", "a job ended", trace_id=TRACE)))
    [job] = lines(observed, "worker", "a job ended", trace_id=TRACE)
    assert job["job_id"] == job_id


def test_a_malformed_traceparent_is_passed_over(observed: Observed) -> None:
    job_id = generate(observed, {"traceparent": f"00-{TRACE[:-1]}x-1-01"}).json()["id"]
    wait_until(lambda: bool(lines(observed, "worker", "a job ended", job_id=job_id)))
    [job] = lines(observed, "worker", "a job ended", job_id=job_id)
    assert "trace_id" not in job


def test_no_log_line_has_a_prompt(observed: Observed) -> None:
    prompt = "a prompt that is nobody's business"
    job_id = generate(observed, {}, prompt=prompt).json()["id"]
    wait_until(lambda: bool(lines(observed, "worker", "a job ended", job_id=job_id)))
    assert prompt not in observed.stack.log("gateway") + observed.stack.log("worker")
