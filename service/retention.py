"""Removes images whose jobs are forgotten; Redis lets go of the rest by itself."""

import asyncio
import time
from typing import Final, cast
from uuid import uuid4

import redis
import redis.asyncio
import structlog
from anyio import CapacityLimiter, to_thread

from koala.clock import in_seconds
from koala.expiry import ExpiringImages
from koala.keys import Keys
from koala.settings import Settings
from koala.spec import images_id
from koala.store import ImageStore
from koala.unreadable import Unreadables

log = structlog.get_logger()

_SWEEP_SECONDS: Final = 30.0
# What no record tells of is looked for less often: it takes a listing of the whole store.
_ORPHANS_SECONDS: Final = 3600.0
# Names noted at a time, in Redis' memory: about 6 MB. The others get their turn.
_MOST_ORPHANS: Final = 50_000
_PER_COMMAND: Final = 1_000
# Jobs whose images are removed between two looks at what is due, and store calls at a time.
_PER_BATCH: Final = 64
_PARALLEL: Final = 8
# What could not be removed is tried again after a sweep's pause, and after twice as long each time.
_LONGEST_BACKOFF_SECONDS: Final = 3600.0
_MOST_DOUBLINGS: Final = 16
_MOST_FAILURES: Final = 10_000
# What this version cannot read a newer one may.
_UNREADABLE_SECONDS: Final = 86_400.0

# KEYS: lock  ARGV: token, lifetime in ms
_RENEW: Final = """
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
"""


class Retention:
    """Sweeps the image store; of all gateways of a queue, one at a time does.

    Args:
        connection: An asyncio client that returns bytes.
        keys: Keys of the queue.
        store: The image store.
        settings: Lifetimes.
        unreadables: Told of entries that cannot be read.
        pause: Seconds between two sweeps.
    """

    def __init__(
        self,
        connection: redis.asyncio.Redis,
        keys: Keys,
        store: ImageStore,
        settings: Settings,
        unreadables: Unreadables | None = None,
        pause: float = _SWEEP_SECONDS,
    ) -> None:
        self._redis = connection
        self._keys = keys
        self._store = store
        self._settings = settings
        self._unreadables = unreadables or Unreadables()
        self._pause = pause
        self._renew = connection.register_script(_RENEW)
        self._threads = CapacityLimiter(_PARALLEL)
        # How often the images of a job could not be removed, by its entry.
        self._failures: dict[bytes, int] = {}
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
        """Remove all that has expired, unless another gateway is at it.

        Raises:
            redis.RedisError: Redis does not answer.
            OSError: The store cannot be listed.
        """
        lock, token = f"{self._keys.images}:sweep", uuid4().hex
        lifetime = round(self._pause * 900)
        if not await self._redis.set(lock, token, nx=True, px=lifetime):
            return
        removed = 0
        while (batch := await self._remove_batch()) is not None:
            removed += batch
            if not await self._renew(keys=[lock], args=[token, lifetime]):
                # We were that slow: another gateway goes on.
                break
        if removed:
            log.info("images expired", jobs=removed)
        if time.monotonic() >= self._next_orphans:
            self._next_orphans = time.monotonic() + _ORPHANS_SECONDS
            await self.remove_orphans()

    async def _remove_batch(self) -> int | None:
        """Remove the images of some jobs that are due; of how many, ``None`` if there is no next.

        What fails is put off, so that it does not keep the others.
        """
        now = in_seconds(await self._redis.time())
        due = cast(
            list[bytes],
            await self._redis.zrange(
                self._keys.images, 0, int(now), byscore=True, offset=0, num=_PER_BATCH
            ),
        )
        troubles = await asyncio.gather(*map(self._remove, due))
        removed = [member for member, trouble in zip(due, troubles, strict=True) if not trouble]
        put_off = {
            member: now + self._put_off(member, trouble)
            for member, trouble in zip(due, troubles, strict=True)
            if trouble
        }
        async with self._redis.pipeline(transaction=False) as pipeline:
            if removed:
                pipeline.zrem(self._keys.images, *removed)
            if put_off:
                pipeline.zadd(self._keys.images, put_off, xx=True)
            await pipeline.execute()
        for member in removed:
            self._failures.pop(member, None)
        # Where everything fails the store is away: it is spared until the next sweep.
        return len(removed) if len(due) == _PER_BATCH and removed else None

    async def _remove(self, member: bytes) -> Exception | None:
        """Remove the images of one job; why that failed, if so."""
        try:
            images = ExpiringImages.decode(member)
        except ValueError as error:
            self._unreadables.note("image", member.decode(errors="replace"), str(error))
            return error
        try:
            for name in images.names:
                await to_thread.run_sync(self._store.delete, name, limiter=self._threads)
        except OSError as error:
            return error
        except Exception as error:
            log.exception("the sweep of images stumbled", images=images.images_id)
            return error
        return None

    def _put_off(self, member: bytes, trouble: Exception) -> float:
        """Seconds until the images of a job are tried again."""
        if isinstance(trouble, ValueError):
            return _UNREADABLE_SECONDS
        failures = self._failures[member] = self._failures.get(member, 0) + 1
        if len(self._failures) > _MOST_FAILURES:
            self._failures.clear()
        backoff = self._pause * (1 << min(failures, _MOST_DOUBLINGS) - 1)
        seconds = min(backoff, _LONGEST_BACKOFF_SECONDS)
        log.warning(
            "images could not be removed",
            images=member.decode(errors="replace"),
            error=str(trouble),
            retry_in=seconds,
        )
        return seconds

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
        known = {ExpiringImages.id_in(member) for member in members}
        orphans = {name for name in names if images_id(name) not in known}
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
