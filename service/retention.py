"""Removes images whose jobs are forgotten; Redis lets go of the rest by itself."""

import asyncio
import time
from typing import Final, cast
from uuid import uuid4

import redis
import redis.asyncio
import structlog
from anyio import to_thread

from koala.clock import in_seconds
from koala.expiry import ExpiringImages
from koala.keys import Keys
from koala.settings import Settings
from koala.store import ImageStore

log = structlog.get_logger()

_SWEEP_SECONDS: Final = 30.0
# What no record tells of is looked for less often: it takes a listing of the whole store.
_ORPHANS_SECONDS: Final = 3600.0
_PER_SWEEP: Final = 500
# Names noted at a time, in Redis' memory: about 6 MB. The others get their turn.
_MOST_ORPHANS: Final = 50_000
_PER_COMMAND: Final = 1_000


class Retention:
    """Sweeps the image store; of all gateways of a queue, one at a time does.

    Args:
        connection: An asyncio client that returns bytes.
        keys: Keys of the queue.
        store: The image store.
        settings: Lifetimes.
        pause: Seconds between two sweeps.
    """

    def __init__(
        self,
        connection: redis.asyncio.Redis,
        keys: Keys,
        store: ImageStore,
        settings: Settings,
        pause: float = _SWEEP_SECONDS,
    ) -> None:
        self._redis = connection
        self._keys = keys
        self._store = store
        self._settings = settings
        self._pause = pause
        self._next_orphans = time.monotonic() + pause

    async def run(self) -> None:
        """Sweep for as long as the process lives."""
        while True:
            await asyncio.sleep(self._pause)
            try:
                await self.sweep()
            except (redis.RedisError, OSError) as error:
                log.warning("expired images could not be removed", error=str(error))
            except Exception:
                # Nobody awaits this task: dying here would fill the disk in silence.
                log.exception("the sweep of images stumbled")

    async def sweep(self) -> None:
        """Remove what has expired, unless another gateway is at it.

        Raises:
            redis.RedisError: Redis does not answer.
            OSError: The store is read-only or out of reach.
        """
        lock = f"{self._keys.images}:sweep"
        if not await self._redis.set(lock, uuid4().hex, nx=True, px=round(self._pause * 900)):
            return
        await self._remove_expired()
        if time.monotonic() >= self._next_orphans:
            self._next_orphans = time.monotonic() + _ORPHANS_SECONDS
            await self.remove_orphans()

    async def _remove_expired(self) -> None:
        now = int(in_seconds(await self._redis.time()))
        due = cast(
            list[bytes],
            await self._redis.zrange(
                self._keys.images, 0, now, byscore=True, offset=0, num=_PER_SWEEP
            ),
        )
        for member in due:
            for name in ExpiringImages.decode(member).names:
                await to_thread.run_sync(self._store.delete, name)
            await self._redis.zrem(self._keys.images, member)
        if due:
            log.info("images expired", jobs=len(due))

    async def remove_orphans(self) -> None:
        """Remove images that no job ever will tell of: its worker was killed once too often.

        Those are removed that were seen without a job for as long as a job can be in flight. How
        old a file is does not count: that is told by clocks of other machines.

        Raises:
            redis.RedisError: Redis does not answer.
            OSError: The store is read-only or out of reach.
        """
        # In this order: what a job that ends meanwhile stored is known then.
        names = await to_thread.run_sync(self._store.names)
        members = cast(list[bytes], await self._redis.zrange(self._keys.images, 0, -1))
        known = {name for member in members for name in ExpiringImages.decode(member).names}
        orphans = set(names) - known
        now = in_seconds(await self._redis.time())
        age = self._settings.event_ttl + _ORPHANS_SECONDS
        noted = await self._noted_orphans()
        due = [name for name, since in noted.items() if name in orphans and now - since >= age]
        for name in due:
            await to_thread.run_sync(self._store.delete, name)
        forgotten = [*due, *(noted.keys() - orphans)]
        fresh = list(orphans - noted.keys())[: max(0, _MOST_ORPHANS - len(noted))]
        await self._note_orphans(fresh, now, forgotten, round(2 * age))
        if due:
            log.warning("images without a job were removed", images=len(due))

    async def _noted_orphans(self) -> dict[str, float]:
        """Names in the store that no job told of, and when that was first seen."""
        noted = cast(
            list[tuple[bytes, float]],
            await self._redis.zrange(self._keys.orphans, 0, -1, withscores=True),
        )
        return {name.decode(): since for name, since in noted}

    async def _note_orphans(
        self, fresh: list[str], now: float, forgotten: list[str], ttl: int
    ) -> None:
        key = self._keys.orphans
        async with self._redis.pipeline(transaction=False) as pipeline:
            for start in range(0, len(forgotten), _PER_COMMAND):
                pipeline.zrem(key, *forgotten[start : start + _PER_COMMAND])
            for start in range(0, len(fresh), _PER_COMMAND):
                pipeline.zadd(key, dict.fromkeys(fresh[start : start + _PER_COMMAND], now), nx=True)
            pipeline.expire(key, ttl)
            await pipeline.execute()
