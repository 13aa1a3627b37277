"""How many requests a caller may send in a while."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import redis

from koala.clock import AsyncRedisClock
from koala.connections import connect_async
from koala.settings import Settings
from service.rate_limits import RateLimits, caller
from tests.service.fakes import FakeWorker, Served, serving, wait_until
from tests.service.keyed import GENERATIONS, asking, make_key, openai_client, post, with_keys

LIMIT = "x-ratelimit-limit-requests"
REMAINING = "x-ratelimit-remaining-requests"
RESET = "x-ratelimit-reset-requests"


@contextmanager
def limited(settings: Settings, rate_limit: str, **changes: Any) -> Iterator[Served]:
    with serving(settings.model_copy(update={"rate_limit": rate_limit} | changes)) as served:
        yield served


def seconds(header: str) -> int:
    assert header.endswith("s")
    return int(header[:-1])


def test_past_the_limit_the_answer_is_a_429_that_names_it(
    settings: Settings, worker: FakeWorker
) -> None:
    with asking(settings, rate_limit="3/minute") as served:
        answers = [post(served, "alice") for _ in range(4)]
        assert [answer.status_code for answer in answers] == [202, 202, 202, 429]
        assert [answer.headers[REMAINING] for answer in answers] == ["2", "1", "0", "0"]
        for answer in answers:
            assert answer.headers[LIMIT] == "3"
            assert 0 < seconds(answer.headers[RESET]) <= 60
        error = answers[-1].json()["error"]
        assert (error["type"], error["code"]) == ("rate_limit_error", "rate_limit_exceeded")
        assert "3 requests per minute" in error["message"]
        assert 0 < int(answers[-1].headers["retry-after"]) <= 60
        assert "x-should-retry" not in answers[-1].headers
        assert len(worker.waiting()) == 3


def test_each_key_has_a_limit_of_its_own(settings: Settings) -> None:
    with asking(settings, rate_limit="1/minute") as served:
        assert post(served, "alice").status_code == 202
        assert post(served, "alice").status_code == 429
        assert post(served, "bob").status_code == 202


def test_a_keys_own_limit_goes_before_the_default(settings: Settings) -> None:
    keyed = with_keys(settings, rate_limit="1/minute")
    make_key(keyed, "carl", rate_limit="2/minute")
    with serving(keyed) as served:
        assert [post(served, "carl").status_code for _ in range(3)] == [202, 202, 429]


def test_a_limit_of_one_key_does_not_need_a_default(settings: Settings) -> None:
    keyed = with_keys(settings)
    make_key(keyed, "carl", rate_limit="1/minute")
    with serving(keyed) as served:
        assert [post(served, "carl").status_code for _ in range(2)] == [202, 429]
        free = post(served, "alice")
        assert free.status_code == 202
        assert LIMIT not in free.headers


def test_two_gateways_count_together(settings: Settings) -> None:
    with limited(settings, "2/minute") as one, limited(settings, "2/minute") as other:
        assert post(one, None).status_code == 202
        assert post(other, None).status_code == 202
        assert post(one, None).status_code == post(other, None).status_code == 429


def test_the_window_moves_on(settings: Settings) -> None:
    with limited(settings, "1/second") as served:
        assert post(served, None).status_code == 202
        wait_until(lambda: post(served, None).status_code == 202)


def test_of_several_windows_the_tightest_counts(settings: Settings) -> None:
    with limited(settings, "100/hour;2/minute") as served:
        answers = [post(served, None) for _ in range(3)]
        assert [answer.status_code for answer in answers] == [202, 202, 429]
        assert [answer.headers[LIMIT] for answer in answers] == ["2", "2", "2"]
        assert "2 requests per minute" in answers[-1].json()["error"]["message"]


def test_what_one_window_refuses_uses_up_no_other(settings: Settings) -> None:
    with limited(settings, "4/hour;1/minute") as served:
        statuses = [post(served, None).status_code for _ in range(4)]
    assert statuses == [202, 429, 429, 429]
    client: redis.Redis = redis.Redis.from_url(settings.resolved_redis_url)
    [hourly] = client.keys(f"koala:{settings.queue}:rate:*hour")
    assert client.llen(hourly) == 1
    client.close()


def test_a_wait_that_clients_would_not_bear_is_not_to_be_retried(settings: Settings) -> None:
    with limited(settings, "1/hour") as served:
        post(served, None)
        refused = post(served, None)
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) > 120
        assert refused.headers["x-should-retry"] == "false"


def test_a_request_that_is_refused_otherwise_tells_the_limit_too(settings: Settings) -> None:
    with limited(settings, "5/minute") as served:
        invalid = post(served, None, n=11)
        assert invalid.status_code == 400
        assert invalid.headers[REMAINING] == "4"


def test_only_generations_count(settings: Settings) -> None:
    with limited(settings, "1/minute") as served:
        for _ in range(3):
            response = served.http.get("/v1/jobs")
            assert response.status_code == 200
            assert LIMIT not in response.headers
        assert post(served, None).status_code == 202


def test_a_stranger_uses_up_nobodys_limit(settings: Settings) -> None:
    with asking(settings, rate_limit="1/minute") as served:
        for _ in range(3):
            assert post(served, None).status_code == post(served, "stranger").status_code == 401
        assert post(served, "alice").status_code == 202


def test_without_redis_nobody_is_let_past(settings: Settings, tmp_path: Path) -> None:
    url = f"unix://{tmp_path}/none.sock"
    with limited(settings, "5/minute", redis_url=url) as served:
        response = post(served, None)
        assert response.status_code == 503
        assert response.json()["error"]["code"] == "queue_unavailable"
        assert response.headers["retry-after"]

    async def spend() -> None:
        unreachable = settings.model_copy(update={"redis_url": url, "rate_limit": "5/minute"})
        connection = connect_async(unreachable)
        try:
            await RateLimits(connection, unreachable, AsyncRedisClock(connection)).spend(
                "somebody", None
            )
        finally:
            await connection.aclose()

    with pytest.raises(redis.RedisError):
        asyncio.run(spend())


def test_without_a_limit_none_is_told(served: Served) -> None:
    assert LIMIT not in post(served, None).headers


def test_the_openai_client_raises_its_rate_limit_error_and_does_not_wait_an_hour(
    settings: Settings, worker: FakeWorker
) -> None:
    with (
        asking(settings, rate_limit="1/hour") as served,
        worker.working(),
        openai_client(served, "alice", max_retries=2) as client,
    ):
        client.images.generate(prompt="a koala")
        with pytest.raises(openai.RateLimitError) as caught:
            client.images.generate(prompt="a koala")
        assert caught.value.code == "rate_limit_exceeded"
        assert caught.value.response.headers[REMAINING] == "0"
        # One try: more would be answered alike for an hour.
        labels = f'method="POST",route="{GENERATIONS}",status="429"'
        assert served.metric(f"koala_http_requests_total{{{labels}}}") == 1


def test_the_openai_client_tries_again_when_the_limit_allows(
    settings: Settings, worker: FakeWorker
) -> None:
    with (
        asking(settings, rate_limit="1/second") as served,
        worker.working(),
        openai_client(served, "alice", max_retries=5) as client,
    ):
        for _ in range(2):
            assert client.images.generate(prompt="a koala").data


def test_requests_at_the_same_time_share_the_limit(settings: Settings) -> None:
    async def main(base_url: str) -> list[int]:
        async with httpx.AsyncClient(base_url=base_url, timeout=120) as client:
            body, headers = {"prompt": "a"}, {"Prefer": "respond-async"}
            calls = [client.post(GENERATIONS, json=body, headers=headers) for _ in range(30)]
            return [response.status_code for response in await asyncio.gather(*calls)]

    with limited(settings, "10/minute") as served:
        statuses = asyncio.run(main(served.base_url))
    assert sorted(statuses) == [202] * 10 + [429] * 20


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("192.0.2.1", "192.0.2.2", False),
        ("2001:db8::1", "2001:db8::2", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("::ffff:192.0.2.1", "192.0.2.1", True),
        ("::ffff:192.0.2.1", "::ffff:192.0.2.2", False),
        (None, "192.0.2.1", False),
    ],
)
def test_without_keys_addresses_are_told_apart_and_networks_of_one_host_are_not(
    one: str | None, other: str, same: bool
) -> None:
    assert (caller("", one) == caller("", other)) is same


def test_no_name_of_a_key_is_taken_for_an_address() -> None:
    assert caller("192.0.2.1", None) != caller("", "192.0.2.1")
