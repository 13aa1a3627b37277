"""What the live workers say of themselves, remembered for a moment."""

import time
from typing import Final

import redis.asyncio

from koala.keys import Keys
from koala.single_flight import SingleFlight
from koala.unreadable import Unreadables
from koala.workers import Accounts, WorkerAd, read_accounts

_FRESH_SECONDS: Final = 0.5


class Fleet:
    """The workers of one queue."""

    def __init__(
        self, connection: redis.asyncio.Redis, keys: Keys, unreadables: Unreadables | None = None
    ) -> None:
        self._redis = connection
        self._keys = keys
        self._unreadables = unreadables or Unreadables()
        self._accounts = Accounts([], {})
        self._read_at = float("-inf")
        self._reading = SingleFlight(self._read)

    async def alive(self) -> list[WorkerAd]:
        """The accounts of all live workers, at most half a second old.

        Raises:
            redis.RedisError: Redis cannot be reached.
        """
        if time.monotonic() - self._read_at > _FRESH_SECONDS:
            await self._reading.result()
        return self._accounts.alive

    @property
    def unreadable(self) -> list[str]:
        """Names of live workers whose accounts could not be read at the last look."""
        return sorted(self._accounts.unreadable)

    async def serves(self, model: str) -> bool:
        """Whether a live worker serves ``model``."""
        return any(ad.serves(model) for ad in await self.alive())

    async def seconds_to_draw(self, images: int) -> float | None:
        """Seconds that ``images`` take at the workers' measured pace; ``None``: unknown."""
        rate = sum(ad.images_per_second or 0.0 for ad in await self.alive())
        return images / rate if rate else None

    async def _read(self) -> None:
        self._accounts = await read_accounts(self._redis, self._keys)
        self._read_at = time.monotonic()
        for name, reason in self._accounts.unreadable.items():
            self._unreadables.note("worker", name, reason)
