import asyncio
from datetime import UTC, datetime, timedelta

import pytest
import redis

from koala.connections import connect, connect_async
from koala.keys import Keys
from koala.settings import Settings
from koala.workers import WorkerAd, advertise, alive, forget_dead, withdraw

KEYS = Keys("koala")


def ad(name: str, seconds: float = 60) -> WorkerAd:
    now = datetime.now(UTC)
    return WorkerAd(
        name=name,
        model="koala-demo",
        device="cpu",
        dtype="float32",
        version="0",
        started_at=now,
        expires_at=now + timedelta(seconds=seconds),
        jobs_in_flight=0,
        rows=0,
        max_rows=32,
        images_total=0,
    )


@pytest.fixture
def connection(settings: Settings) -> redis.Redis:
    return connect(settings)


def names(settings: Settings) -> list[str]:
    async def read() -> list[str]:
        client = connect_async(settings)
        try:
            return [each.name for each in await alive(client, KEYS)]
        finally:
            await client.aclose()

    return asyncio.run(read())


def test_only_workers_that_spoke_lately_are_alive(
    settings: Settings, connection: redis.Redis
) -> None:
    for each in (ad("b"), ad("a"), ad("silent", -1), ad("gone")):
        advertise(connection, KEYS, each)
    withdraw(connection, KEYS, "gone")
    assert names(settings) == ["a", "b"]


def test_the_silent_and_the_unreadable_are_forgotten(
    settings: Settings, connection: redis.Redis
) -> None:
    advertise(connection, KEYS, ad("fine"))
    advertise(connection, KEYS, ad("silent", -1))
    connection.hset(KEYS.workers, "of another version", '{"name": "of another version"}')
    assert names(settings) == ["fine"]
    forget_dead(connection, KEYS)
    assert connection.hkeys(KEYS.workers) == [b"fine"]
