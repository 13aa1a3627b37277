"""What the live workers say of themselves, remembered for a moment."""

import time
from typing import Final

import redis.asyncio

from koala.keys import Keys
from koala.spec import JobRecord
from koala.workers import WorkerAd, alive

_FRESH_SECONDS: Final = 0.5


class Fleet:
    """The workers of one queue."""

    def __init__(self, connection: redis.asyncio.Redis, keys: Keys) -> None:
        self._redis = connection
        self._keys = keys
        self._ads: list[WorkerAd] = []
        self._read_at = float("-inf")

    async def alive(self) -> list[WorkerAd]:
        """The accounts of all live workers, at most half a second old.

        Raises:
            redis.RedisError: Redis cannot be reached.
        """
        if time.monotonic() - self._read_at > _FRESH_SECONDS:
            self._ads = await alive(self._redis, self._keys)
            self._read_at = time.monotonic()
        return [ad for ad in self._ads if ad.is_alive]

    async def serves(self, model: str) -> bool:
        """Whether a live worker serves ``model``."""
        return any(ad.model == model for ad in await self.alive())

    async def eta(self, record: JobRecord) -> float | None:
        """Seconds until an unfinished job ends, from the workers' own pace; ``None``: unknown."""
        ads = await self.alive()
        if record.state == "in_progress":
            return _run_eta(record, [ad for ad in ads if ad.name == record.worker] or ads)
        if record.state == "queued":
            return _queue_eta(record, ads)
        return None

    async def seconds_to_draw(self, images: int) -> float | None:
        """Seconds that ``images`` take at the workers' measured pace; ``None``: unknown."""
        rate = sum(ad.images_per_second or 0.0 for ad in await self.alive())
        return images / rate if rate else None


def _run_eta(record: JobRecord, ads: list[WorkerAd]) -> float | None:
    paces = [ad.seconds_per_step for ad in ads if ad.seconds_per_step is not None]
    if not paces:
        return None
    # Progress counts the steps of all images, which advance side by side.
    left = (record.progress.steps - record.progress.step) / record.spec.n
    return left * sum(paces) / len(paces)


def _queue_eta(record: JobRecord, ads: list[WorkerAd]) -> float | None:
    own = _run_eta(record, ads)
    rate = sum(ad.images_per_second or 0.0 for ad in ads)
    ahead = record.position or 0
    if own is None or (ahead and not rate):
        return None
    # The jobs ahead are taken to be like this one.
    return own + (ahead * record.spec.n / rate if ahead else 0.0)
