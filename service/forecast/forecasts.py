"""The ETA of any job, from a look at queue and workers that is never old."""

import asyncio
import time
from dataclasses import replace
from typing import Final

import redis.asyncio

from koala.keys import Keys
from koala.spec import JobRecord
from service.fleet import Fleet
from service.forecast.forecast import forecast
from service.forecast.reader import SituationReader
from service.forecast.situation import Situation

_FRESH_SECONDS: Final = 0.5
# Jobs that a look did not show are worth another one, but not one each.
_NEXT_LOOK_SECONDS: Final = 0.05
# Of a gateway's time, forecasts may take this part: a long queue takes longer to run ahead.
_SHARE: Final = 0.05
# What takes less than that is made whenever it is asked for.
_CHEAP_SECONDS: Final = 0.002


class Forecasts:
    """Forecasts of one queue, shared by all who ask.

    Args:
        connection: An asyncio client that returns bytes.
        keys: Keys of the queue.
        fleet: The live workers.
    """

    def __init__(self, connection: redis.asyncio.Redis, keys: Keys, fleet: Fleet) -> None:
        self._reader = SituationReader(connection, keys)
        self._fleet = fleet
        self._looking = asyncio.Lock()
        self._looked_at = float("-inf")
        self._situation = Situation(lanes=())
        self._queued: set[str] = set()
        # By job id, in seconds from the look; ``None``: to be computed.
        self._ends: dict[str, float] | None = None
        self._rests_until = float("-inf")

    async def eta(self, record: JobRecord) -> float | None:
        """Seconds until an unfinished job ends; ``None``: unknown, or it has ended.

        Raises:
            redis.RedisError: Redis cannot be reached.
        """
        if record.state not in ("queued", "in_progress"):
            return None
        await self._look(_FRESH_SECONDS)
        if not self._situation.lanes:
            return None
        if record.state == "in_progress" and record.id in self._queued:
            # It has been taken since the look.
            await self._look(_NEXT_LOOK_SECONDS)
        end = self._end_of(record.id)
        if end is None and record.state == "queued":
            self._insert(record)
            end = self._end_of(record.id)
        if end is None:
            await self._look(_NEXT_LOOK_SECONDS)
            end = self._end_of(record.id)
        return None if end is None else max(0.0, end - (time.monotonic() - self._looked_at))

    async def _look(self, oldest: float) -> None:
        if self._has_looked(oldest):
            return
        async with self._looking:
            if self._has_looked(oldest):
                # Somebody else looked meanwhile.
                return
            situation = await self._reader.read(await self._fleet.alive())
            self._looked_at = time.monotonic()
            self._situation, self._ends = situation, None
            self._queued = {work.job_id for work in situation.queue}

    def _has_looked(self, oldest: float) -> bool:
        now = time.monotonic()
        return now - self._looked_at <= oldest or now < self._rests_until

    def _end_of(self, job_id: str) -> float | None:
        if self._ends is None:
            began = time.monotonic()
            self._ends = forecast(self._situation)
            now = time.monotonic()
            dear = max(0.0, now - began - _CHEAP_SECONDS)
            self._rests_until = now + dear * (1 / _SHARE - 1)
        return self._ends.get(job_id)

    def _insert(self, record: JobRecord) -> None:
        """Put a job into the queue that came after the look."""
        queue = list(self._situation.queue)
        work = self._reader.remember(record.id, record.spec)
        position = len(queue) if record.position is None else min(record.position, len(queue))
        queue.insert(position, work)
        self._situation = replace(
            self._situation, queue=tuple(queue), newcomers=self._situation.newcomers + 1
        )
        if self._ends is None or not position or time.monotonic() >= self._rests_until:
            self._ends = None
        elif (before := self._ends.get(queue[position - 1].job_id)) is not None:
            # Until the next look: about when the one before it ends.
            self._ends[record.id] = before
