"""Webhooks as their receivers see them: over HTTP, from a gateway, when a job has ended."""

import socket
import time
from collections.abc import Iterator
from datetime import datetime
from email.utils import formatdate
from typing import Any

import pytest
from pydantic import SecretStr
from standardwebhooks import WebhookVerificationError

from koala.settings import Settings
from tests.service.fakes import FakeWorker, Served, serving, wait_until
from tests.service.webhook_rig import (
    QUICK,
    SECRET,
    Receiver,
    count,
    outbox,
    settled,
    submit,
    with_webhooks,
)

OTHER_SECRET = "whsec_" + "b" * 44
GENERATIONS = "/v1/images/generations"


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return with_webhooks(settings)


@pytest.fixture
def served(settings: Settings) -> Iterator[Served]:
    """A gateway that tries again soon."""
    with serving(settings, QUICK) as running:
        yield running


def test_a_completed_job_is_told_signed_and_whole(
    served: Served, worker: FakeWorker, receiver: Receiver
) -> None:
    fields = {"n": 2, "response_format": "b64_json", "safety_identifier": "ü1"}
    job_id = submit(served, receiver.url + "?token=x%20y", **fields)
    worker.finish(worker.take())

    settled(served, worker, "delivered")

    [delivery] = receiver.deliveries
    message = delivery.verified(SECRET)
    assert delivery.path == "/hook?token=x%20y"
    assert delivery.headers["content-type"] == "application/json"
    assert delivery.headers["user-agent"].startswith("koala-serve/")
    assert message.keys() == {"type", "timestamp", "data"}
    assert message["type"] == "image.generation.completed"
    assert datetime.fromisoformat(message["timestamp"]).tzinfo is not None
    # What GET gives, but with URLs, whatever the request asked for.
    job = served.http.get(f"/v1/jobs/{job_id}").json()
    names = [worker.spec(job_id).image_name(i) for i in range(2)]
    urls = [f"{served.base_url}/v1/images/{name}" for name in names]
    assert [image["url"] for image in message["data"]["result"]["data"]] == urls
    assert served.http.get(urls[0]).is_success
    for body in (job, message["data"]):
        del body["expires_at"]
        del body["result"]["data"]
    assert message["data"] == job


@pytest.mark.parametrize("end", ["fail", "cancel"])
def test_a_job_that_ended_otherwise_is_told_too(
    served: Served, worker: FakeWorker, receiver: Receiver, end: str
) -> None:
    job_id = submit(served, receiver.url)
    getattr(worker, end)(worker.take())

    settled(served, worker, "delivered")

    message = receiver.deliveries[0].verified(SECRET)
    status = {"fail": "failed", "cancel": "cancelled"}[end]
    assert message["type"] == f"image.generation.{status}"
    assert (message["data"]["id"], message["data"]["status"]) == (job_id, status)
    assert (message["data"]["error"] is not None) is (end == "fail")


def test_without_a_webhook_nothing_is_sent(
    served: Served, worker: FakeWorker, receiver: Receiver
) -> None:
    served.http.post(
        GENERATIONS,
        json={"prompt": "a koala", "webhook_url": None},
        headers={"Prefer": "respond-async"},
    )
    worker.finish(worker.take())
    assert outbox(worker) == {}
    assert receiver.deliveries == []


def test_a_signature_of_another_secret_does_not_hold(
    served: Served, worker: FakeWorker, receiver: Receiver
) -> None:
    submit(served, receiver.url)
    worker.finish(worker.take())
    settled(served, worker, "delivered")
    with pytest.raises(WebhookVerificationError):
        receiver.deliveries[0].verified(OTHER_SECRET)


def test_while_secrets_change_each_of_them_verifies(
    settings: Settings, worker: FakeWorker, receiver: Receiver
) -> None:
    both = SecretStr(f"{SECRET},{OTHER_SECRET}")
    with serving(settings.model_copy(update={"webhook_secret": both}), QUICK) as served:
        submit(served, receiver.url)
        worker.finish(worker.take())
        settled(served, worker, "delivered")
    [delivery] = receiver.deliveries
    assert delivery.verified(SECRET) == delivery.verified(OTHER_SECRET)


def test_a_failure_is_tried_again_as_the_same_message(
    served: Served, worker: FakeWorker, receiver: Receiver
) -> None:
    receiver.answers = [(500, {}), (401, {})]
    job_id = submit(served, receiver.url)
    worker.finish(worker.take())

    settled(served, worker, "delivered")

    assert receiver.ids() == [job_id] * 3
    for delivery in receiver.deliveries:
        assert delivery.verified(SECRET)["data"]["id"] == job_id
    assert count(served, "retried") == 2
    assert served.metric("koala_webhook_seconds_count") == 3
    assert served.metric("koala_webhooks_waiting") == 0


def test_each_attempt_has_its_own_time(
    served: Served, worker: FakeWorker, receiver: Receiver
) -> None:
    receiver.answers = [(500, {"Retry-After": "2"})]
    submit(served, receiver.url)
    worker.finish(worker.take())
    settled(served, worker, "delivered")
    first, second = (int(d.headers["webhook-timestamp"]) for d in receiver.deliveries)
    assert second > first


def test_a_redirect_is_a_failure_and_not_followed(
    served: Served, worker: FakeWorker, receiver: Receiver
) -> None:
    receiver.answers = [(302, {"Location": "/elsewhere"}), (307, {"Location": "/elsewhere"})]
    submit(served, receiver.url)
    worker.finish(worker.take())
    settled(served, worker, "delivered")
    assert [delivery.path for delivery in receiver.deliveries] == ["/hook"] * 3


def test_who_is_gone_hears_nothing_more(
    served: Served, worker: FakeWorker, receiver: Receiver
) -> None:
    receiver.answers = [(410, {})]
    submit(served, receiver.url)
    worker.finish(worker.take())
    settled(served, worker, "gone")
    assert len(receiver.deliveries) == 1


def test_after_the_last_attempt_it_is_given_up(
    served: Served, worker: FakeWorker, receiver: Receiver
) -> None:
    receiver.answers = [(503, {})] * 10
    submit(served, receiver.url)
    worker.finish(worker.take())
    settled(served, worker, "given_up")
    assert len(receiver.deliveries) == 1 + len(QUICK.delays)
    assert count(served, "retried") == len(QUICK.delays)


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_the_receiver_can_ask_for_more_time(
    served: Served, worker: FakeWorker, receiver: Receiver, form: str
) -> None:
    later = time.gmtime(time.time() + 1000)
    date = time.strftime("%a, %d %b %Y %H:%M:%S GMT", later)
    receiver.answers = [(503, {"Retry-After": "1000" if form == "seconds" else date})]
    job_id = submit(served, receiver.url)
    worker.finish(worker.take())
    wait_until(lambda: count(served, "retried") == 1)
    wait_until(lambda: outbox(worker)[job_id] > time.time() + 900)
    assert outbox(worker)[job_id] < time.time() + 1001


def test_a_receiver_whose_clock_is_wrong_is_asked_for_no_other_time_than_it_means(
    served: Served, worker: FakeWorker, receiver: Receiver
) -> None:
    now = time.time() - 86_400
    dates = [formatdate(moment, usegmt=True) for moment in (now, now + 1000)]
    receiver.answers = [(503, dict(zip(("Date", "Retry-After"), dates, strict=True)))]
    job_id = submit(served, receiver.url)
    worker.finish(worker.take())
    wait_until(lambda: count(served, "retried") == 1)
    wait_until(lambda: outbox(worker)[job_id] > time.time() + 900)


def test_a_job_that_expired_is_told_no_more(served: Served, worker: FakeWorker) -> None:
    worker.redis.zadd(worker.keys.outbox, {"job_" + "0" * 32: 1})
    settled(served, worker, "expired")
    # Counting attempts must not bring its hash back.
    assert worker.redis.keys("rq:job:*") == []


def test_a_message_that_cannot_be_made_is_given_up_and_holds_up_nobody(
    served: Served, worker: FakeWorker, receiver: Receiver
) -> None:
    broken = submit(served, receiver.url)
    worker.finish(worker.take())
    settled(served, worker, "delivered")
    worker.redis.hset(worker.keys.job(broken), "created_at", "yesterday")
    worker.redis.zadd(worker.keys.outbox, {broken: 1})
    good = submit(served, receiver.url)
    worker.finish(worker.take())
    settled(served, worker, "delivered", 2)
    assert count(served, "given_up") == 1
    assert receiver.ids() == [broken, good]


def test_a_message_that_ended_all_its_senders_is_given_up(
    served: Served, worker: FakeWorker, receiver: Receiver
) -> None:
    job_id = submit(served, receiver.url)
    worker.redis.hset(worker.keys.job(job_id), "koala_webhook_attempts", QUICK.most_attempts)
    worker.finish(worker.take())
    settled(served, worker, "given_up")
    assert receiver.deliveries == []


@pytest.mark.parametrize(("allow_private", "outcome"), [(False, "refused"), (True, "delivered")])
def test_a_name_is_resolved_and_judged_when_it_is_sent_to(
    settings: Settings,
    worker: FakeWorker,
    receiver: Receiver,
    monkeypatch: pytest.MonkeyPatch,
    allow_private: bool,
    outcome: str,
) -> None:
    def resolve(host: str, *args: Any, **kwargs: Any) -> Any:
        return resolve_really("127.0.0.1" if host == "koala.example" else host, *args, **kwargs)

    resolve_really = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    allowing = settings.model_copy(update={"webhook_allow_private": allow_private})
    # uvloop resolves names by itself, out of reach of a patch.
    with serving(allowing, QUICK, loop="asyncio") as served:
        submit(served, receiver.url.replace("127.0.0.1", "koala.example"))
        worker.finish(worker.take())
        settled(served, worker, outcome)
    assert len(receiver.deliveries) == allow_private


def test_at_the_request_a_bad_url_is_refused_by_name(served: Served, worker: FakeWorker) -> None:
    for url in ("koala.example", "https://u:p@koala.example/", 3, "x" * 600):
        response = served.http.post(GENERATIONS, json={"prompt": "a", "webhook_url": url})
        assert response.status_code == 400
        assert response.json()["error"]["param"] == "webhook_url"
    assert worker.waiting() == []


def test_without_a_secret_a_webhook_is_refused_by_name(api: Served) -> None:
    body = {"prompt": "a koala", "webhook_url": "https://koala.example/hook"}
    response = api.http.post(GENERATIONS, json=body)
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["param"] == "webhook_url"
    assert "KOALA_WEBHOOK_SECRET" in error["message"]


def test_the_openapi_document_describes_the_message(api: Served) -> None:
    document = api.http.get("/openapi.json").json()
    [webhook] = document["webhooks"].values()
    schema = webhook["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert schema == {"$ref": "#/components/schemas/WebhookMessage"}


def test_a_job_cancelled_while_it_waits_is_told_too(
    served: Served, worker: FakeWorker, receiver: Receiver
) -> None:
    job_id = submit(served, receiver.url)
    served.http.post(f"/v1/jobs/{job_id}/cancel")

    settled(served, worker, "delivered")

    [delivery] = receiver.deliveries
    message = delivery.verified(SECRET)
    assert message["type"] == "image.generation.cancelled"
    assert message["data"]["id"] == job_id
