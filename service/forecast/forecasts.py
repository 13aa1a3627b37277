"""The ETA of any job, from a look at queue and workers that is never old."""

import asyncio
import time
from dataclasses import dataclass, replace
from typing import Final

import redis.asyncio

from koala.keys import Keys
from koala.single_flight import SingleFlight
from koala.spec import JobRecord
from koala.unreadable import Unreadables
from service.fleet import Fleet
from service.forecast.forecast import forecast
from service.forecast.reader import SituationReader
from service.forecast.situation import Situation, Work

_FRESH_SECONDS: Final = 0.5
# Jobs that a look did not show are worth another one, but not one each.
_NEXT_LOOK_SECONDS: Final = 0.05
# Of a gateway's time, forecasts may take this part: a long queue takes longer to run ahead.
_SHARE: Final = 0.05
# What takes less than that is made whenever it is asked for.
_CHEAP_SECONDS: Final = 0.002


@dataclass(slots=True, eq=False)
class _Look:
    """What one look found, and what was forecast from it.

    ``taken_at`` is of the monotonic clock; ``ends`` are seconds from then by job id, ``None``
    where they are still to be computed.
    """

    situation: Situation
    taken_at: float
    ends: dict[str, float] | None = None

    def has_queued(self, job_id: str) -> bool:
        return any(work.job_id == job_id for work in self.situation.queue)

    def insert(self, work: Work, position: int | None) -> str | None:
        """Put a job into the queue that came after the look; the id of the job before it."""
        queue = [other for other in self.situation.queue if other.job_id != work.job_id]
        is_new = len(queue) == len(self.situation.queue)
        position = len(queue) if position is None else min(position, len(queue))
        queue.insert(position, work)
        self.situation = replace(
            self.situation,
            queue=tuple(queue),
            newcomers=self.situation.newcomers + is_new,
        )
        return queue[position - 1].job_id if position else None


class Forecasts:
    """Forecasts of one queue, shared by all who ask.

    Args:
        connection: An asyncio client that returns bytes.
        keys: Keys of the queue.
        fleet: The live workers.
        unreadables: Told of events that cannot be read.
    """

    def __init__(
        self,
        connection: redis.asyncio.Redis,
        keys: Keys,
        fleet: Fleet,
        unreadables: Unreadables | None = None,
    ) -> None:
        self._reader = SituationReader(connection, keys, unreadables or Unreadables())
        self._fleet = fleet
        self._look = _Look(Situation(lanes=()), float("-inf"), {})
        self._looking = SingleFlight(self._take_look)
        self._running = SingleFlight(self._run)
        self._rests_until = float("-inf")

    async def eta(self, record: JobRecord) -> float | None:
        """Seconds until an unfinished job ends; ``None``: unknown, or it has ended.

        Raises:
            redis.RedisError: Redis cannot be reached.
        """
        if record.state not in ("queued", "in_progress"):
            return None
        await self._refresh(_FRESH_SECONDS)
        if not self._look.situation.lanes:
            return None
        if record.state == "in_progress" and self._look.has_queued(record.id):
            # It has been taken since the look.
            await self._refresh(_NEXT_LOOK_SECONDS)
        ends = await self._ends()
        if record.id not in ends and record.state == "queued":
            ends = await self._ends_with(record)
        if record.id not in ends:
            await self._refresh(_NEXT_LOOK_SECONDS)
            ends = await self._ends()
        end = ends.get(record.id)
        return None if end is None else max(0.0, end - (time.monotonic() - self._look.taken_at))

    async def _refresh(self, oldest: float) -> None:
        now = time.monotonic()
        if now - self._look.taken_at > oldest and now >= self._rests_until:
            await self._looking.result()

    async def _take_look(self) -> None:
        situation = await self._reader.read(await self._fleet.alive())
        self._look = _Look(situation, time.monotonic())

    async def _ends(self) -> dict[str, float]:
        while self._look.ends is None:
            await self._running.result()
        return self._look.ends

    async def _run(self) -> None:
        look, began = self._look, time.monotonic()
        # A long queue takes a third of a second, too long for the event loop.
        look.ends = await asyncio.to_thread(forecast, look.situation)
        now = time.monotonic()
        dear = max(0.0, now - began - _CHEAP_SECONDS)
        self._rests_until = now + dear * (1 / _SHARE - 1)

    async def _ends_with(self, record: JobRecord) -> dict[str, float]:
        """The ends with that of a job which came after the look."""
        work = self._reader.remember(record.id, record.spec)
        before = self._look.insert(work, record.position)
        if before is None or time.monotonic() >= self._rests_until:
            self._look.ends = None
        ends = await self._ends()
        if record.id not in ends and before in ends:
            # Until the next look: about when the one before it ends.
            ends[record.id] = ends[before]
        return ends
