"""Moving windows in Redis, in Redis' time."""

import redis.asyncio
from limits.aio.storage import RedisStorage

from koala.clock import RedisClock


class MovingWindows(RedisStorage):
    """The storage of the package limits, whose scripts are run with Redis' time.

    The package itself runs them with the machine's.

    Args:
        connection: An asyncio client, whose pool is shared.
        clock: Redis' time.
        key_prefix: What the keys begin with.
    """

    def __init__(self, connection: redis.asyncio.Redis, clock: RedisClock, key_prefix: str) -> None:
        super().__init__(
            "async+redis://",
            implementation="redispy",
            key_prefix=key_prefix,
            # The URL above is not used then, so sockets and TLS work as for all else.
            connection_pool=connection.connection_pool,  # type: ignore[arg-type]
        )
        self._clock = clock
        self._acquire = connection.register_script(self.bridge.SCRIPT_ACQUIRE_MOVING_WINDOW)
        self._look = connection.register_script(self.bridge.SCRIPT_MOVING_WINDOW)

    async def acquire_entry(self, key: str, limit: int, expiry: int, amount: int = 1) -> bool:
        """Count ``amount`` requests, unless that is more than the window may hold."""
        keys, now = [self.bridge.prefixed_key(key)], self._clock.time()
        return bool(await self._acquire(keys=keys, args=[now, limit, expiry, amount]))

    async def get_moving_window(self, key: str, limit: int, expiry: int) -> tuple[float, int]:
        """When the oldest request in the window came, and how many are in it."""
        keys, now = [self.bridge.prefixed_key(key)], self._clock.time()
        window = await self._look(keys=keys, args=[now - expiry, limit])
        return (float(window[0]), window[1]) if window else (now, 0)
