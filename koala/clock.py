"""Redis' time: the only time that machines compare.

A machine's own clock may be wrong by any amount. What is written down for others to compare, or
compared with what others wrote, is Redis' time: by its command ``TIME`` where a script or a
pipeline runs anyway, and elsewhere by this clock. Times that one process compares with its own are
``time.monotonic()``'s.
"""

import time
from datetime import UTC, datetime
from typing import Final

import redis
import redis.asyncio

from koala.single_flight import SingleFlight

# How long an asyncio clock goes without asking again.
_FRESH_SECONDS: Final = 5.0
# Where there is one that goes on while the machine sleeps, that one.
_STEADY: Final = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


class RedisClock:
    """Tells Redis' time without asking Redis each time.

    It knows how far Redis' time is from this machine's steady clock, which is never set. Redis read
    its clock at some moment between question and answer, so the error is at most the time that the
    latest answer took; usually it is half the time that the quickest one took.
    """

    def __init__(self) -> None:
        self._offset: float | None = None
        self._uncertainty = 0.0
        self._asked_at = float("-inf")

    def time(self) -> float:
        """Redis' time in seconds since 1970.

        Raises:
            RuntimeError: Redis was never asked.
        """
        if self._offset is None:
            raise RuntimeError("Redis was never asked for its time")
        return self._offset + _steady()

    def now(self) -> datetime:
        """The same as an aware datetime.

        Raises:
            RuntimeError: Redis was never asked.
        """
        return datetime.fromtimestamp(self.time(), UTC)

    def ask(self, connection: redis.Redis) -> None:
        """Compare with Redis.

        Raises:
            redis.RedisError: Redis does not answer; what was known before still holds.
        """
        before = _steady()
        redis_time = in_seconds(connection.time())
        self.learn(before, redis_time, _steady())

    def learn(self, before: float, redis_time: float, after: float) -> None:
        """Take in that Redis' time was ``redis_time`` between two moments of the steady clock."""
        self._asked_at = after
        least, most = redis_time - after, redis_time - before
        agrees = self._offset is not None and least <= self._offset <= most
        if not agrees or most - least < self._uncertainty:
            self._offset, self._uncertainty = (least + most) / 2, most - least


class AsyncRedisClock(RedisClock):
    """The same in an asyncio process, where those who need the time see to it that it is right.

    Args:
        connection: An asyncio client.
    """

    def __init__(self, connection: redis.asyncio.Redis) -> None:
        super().__init__()
        self._redis = connection
        self._asking = SingleFlight(self._ask)

    async def refresh(self) -> None:
        """Compare with Redis unless that was done just now; to be called before the time is read.

        Raises:
            redis.RedisError: Redis does not answer.
        """
        if _steady() - self._asked_at >= _FRESH_SECONDS:
            await self._asking.result()

    async def _ask(self) -> None:
        before = _steady()
        redis_time = in_seconds(await self._redis.time())
        self.learn(before, redis_time, _steady())


def in_seconds(reply: tuple[int, int]) -> float:
    """The answer to Redis' command ``TIME`` in seconds since 1970."""
    seconds, microseconds = reply
    return seconds + microseconds / 1e6


def _steady() -> float:
    return time.clock_gettime(_STEADY)
