"""Cancelling: one atomic step, so a job that is just being finished ends one way."""

from enum import StrEnum
from typing import Final

import redis.asyncio
from rq.command import PUBSUB_CHANNEL_TEMPLATE
from rq.utils import utcformat

from koala.clock import AsyncRedisClock
from koala.keys import Keys
from koala.scripts import CANCEL, KEPT, ending, prelude
from koala.settings import Settings

# ARGV: job id, Redis' time in RQ's form, '1' to spare jobs that another client knows
_CANCEL: Final = """
local id = ARGV[1]
local job = held(id, 'status', 'worker_name', %(kept)s)
local status, worker, kept = job[1], job[2], job[3]
if not status then return 'missing' end
if kept and ARGV[3] == '1' then return 'kept' end
if status == 'queued' then
  end_cancelled(id, ARGV[2])
  return 'cancelled'
elseif status == 'started' then
  -- The flag outlives a worker that never hears of it.
  redis.call('HSET', job_key(id), %(cancel)s, 1)
  local command = cjson.encode({command = 'stop-job', job_id = id})
  redis.call('PUBLISH', string.format(%(channel)s, worker or ''), command)
  return 'asked'
end
return 'over'
"""

_KEEP: Final = """
if redis.call('EXISTS', job_key(ARGV[1])) == 1 then
  redis.call('HSET', job_key(ARGV[1]), %(kept)s, 1)
end
"""


class Cancelled(StrEnum):
    """What became of the wish to cancel a job."""

    MISSING = "missing"
    KEPT = "kept"
    CANCELLED = "cancelled"
    ASKED = "asked"
    OVER = "over"


class Cancelling:
    """Runs the scripts.

    Args:
        connection: An asyncio client that returns bytes.
        settings: Lifetimes.
        keys: Keys of the queue.
        clock: Says when jobs ended.
    """

    def __init__(
        self,
        connection: redis.asyncio.Redis,
        settings: Settings,
        keys: Keys,
        clock: AsyncRedisClock,
    ) -> None:
        self._clock = clock
        names = {
            "kept": f"'{KEPT}'",
            "cancel": f"'{CANCEL}'",
            "channel": f"'{PUBSUB_CHANNEL_TEMPLATE}'",
        }
        base = prelude(keys, settings.event_ttl) + ending(keys, settings.result_ttl)
        self._cancel = connection.register_script(base + _CANCEL % names)
        self._keep = connection.register_script(base + _KEEP % names)

    async def cancel(self, job_id: str, *, if_abandoned: bool = False) -> Cancelled:
        """Cancel a waiting job; ask the worker of a running one to stop it.

        Args:
            job_id: The job.
            if_abandoned: Spare it if anybody beside its first client knows it.
        """
        await self._clock.refresh()
        moment = utcformat(self._clock.now())
        reply = await self._cancel(args=[job_id, moment, int(if_abandoned)])
        return Cancelled(reply.decode())

    async def keep(self, job_id: str) -> None:
        """Note that somebody beside its first client knows a job."""
        await self._keep(args=[job_id])
