"""Whether Redis answers right now, and when to ask again if it does not."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import structlog
from redis.exceptions import (
    ConnectionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TimeoutError,
)

log = structlog.get_logger()

# What passes without our doing: the server restarts, fails over, or is full for a while.
_OUTAGES: Final = (ConnectionError, TimeoutError, ReadOnlyError, OutOfMemoryError)
# The same, where redis-py has no class for it: the disk is full, or too few replicas are there.
_OUTAGE_CODES: Final = ("MISCONF ", "NOREPLICAS ")

_FIRST_BACKOFF: Final = 0.05
_LONGEST_BACKOFF: Final = 2.0


def is_outage(error: RedisError) -> bool:
    """Whether Redis cannot do what it was asked for only for now."""
    if isinstance(error, _OUTAGES):
        return True
    # In a pipeline or a script, redis-py or Redis puts the code into a sentence.
    return isinstance(error, ResponseError) and any(code in str(error) for code in _OUTAGE_CODES)


class Link:
    """Swallows outages of Redis for one thread and spaces the attempts out.

    What an attempt was about has to be kept by the caller until an attempt succeeds.

    Args:
        name: Whose link it is, for the log.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._backoff = 0.0
        self._next_attempt = 0.0
        self._down_since: float | None = None
        self._scout: Link | None = None

    def follow(self, scout: "Link") -> None:
        """Let attempts be due only while those of ``scout`` succeed.

        A server that does not answer keeps each attempt waiting: let that be another thread.
        """
        self._scout = scout

    @property
    def is_due(self) -> bool:
        """Whether an attempt may be made now: always, unless the last ones failed."""
        if self._scout is not None and self._scout.is_down:
            return False
        return self.seconds_to_wait <= 0

    @property
    def seconds_to_wait(self) -> float:
        """How long from now an attempt is not to be made."""
        return max(0.0, self._next_attempt - time.monotonic())

    @property
    def is_down(self) -> bool:
        """Whether the last attempt failed."""
        return self._down_since is not None

    @contextmanager
    def attempt(self) -> Iterator[None]:
        """Run commands; an outage ends the block early instead of raising."""
        try:
            yield
        except RedisError as error:
            if not is_outage(error):
                raise
            self._failed(error)
        else:
            self._succeeded()

    def _failed(self, error: Exception) -> None:
        if self._down_since is None:
            self._down_since = time.monotonic()
            log.warning("redis is away, work goes on", link=self._name, error=str(error))
        self._backoff = min(max(2 * self._backoff, _FIRST_BACKOFF), _LONGEST_BACKOFF)
        self._next_attempt = time.monotonic() + self._backoff

    def _succeeded(self) -> None:
        if self._down_since is not None:
            away = round(time.monotonic() - self._down_since, 1)
            log.info("redis is back", link=self._name, seconds=away)
            self._down_since = None
            self._backoff = 0.0
            self._next_attempt = 0.0
