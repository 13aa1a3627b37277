"""Fixtures of the worker's tests."""

import signal
from collections.abc import Iterator

import pytest
import redis

from koala.settings import Settings
from tests.worker.rig import Rig


@pytest.fixture
def rig(settings: Settings) -> Iterator[Rig]:
    """An empty queue and what a worker on it needs; signal handlers are restored."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    client = redis.Redis.from_url(settings.resolved_redis_url)
    try:
        yield Rig(settings, client)
    finally:
        client.close()
        for number, handler in handlers.items():
            signal.signal(number, handler)
