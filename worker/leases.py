"""Leases: a job belongs to a worker only as long as the worker keeps saying so.

A claimed job has a token in its hash, the id of its RQ execution, and an entry in the sorted set
of leases. Whoever changes a started job checks the token in the same atomic step, so a worker that
was frozen past its lease can neither renew nor finish what is no longer its own.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

import redis
from redis.commands.core import Script
from rq.utils import utcformat

from koala.clock import RedisClock
from koala.events import EventType
from koala.keys import Keys
from koala.scripts import (
    ATTEMPTS,
    CANCEL,
    CLASS_SIZE,
    OWNER,
    RANK,
    TOKEN,
    ending,
    prelude,
)
from koala.settings import Settings

# ARGV: Redis' time in RQ's form, ...
_SHARED: Final = """
local iso_time = ARGV[1]

local function end_execution(id, token)
  local worker = redis.call('HGET', job_key(id), 'worker_name')
  redis.call('ZREM', started, id .. ':' .. token)
  redis.call('ZREM', 'rq:executions:' .. id, token)
  redis.call('DEL', 'rq:execution:' .. id .. ':' .. token)
  if worker then
    redis.call('SREM', 'rq:worker:' .. worker .. ':executions', id .. ':' .. token)
  end
  redis.call('ZREM', leases, id)
end

local function put_first(id, reason)
  local rank = number(redis.call('HGET', job_key(id), RANK))
  local class = math.floor(rank / CLASS_SIZE)
  -- Virtual time began anew if the queue was empty meanwhile.
  rank = rank_of(class, math.min(rank - class * CLASS_SIZE, virtual_time(class)))
  redis.call('HSET', job_key(id), RANK, rank)
  insert(id, rank, true)
  local attempts = number(redis.call('HGET', job_key(id), ATTEMPTS))
  tell(id, REQUEUED, '{"reason":"' .. reason .. '","attempts":' .. attempts .. '}')
end

local function requeue(id, token, reason)
  end_execution(id, token)
  redis.call('HSET', job_key(id), 'status', 'queued', 'worker_name', '', 'started_at', '')
  redis.call('HDEL', job_key(id), TOKEN)
  if redis.call('HEXISTS', job_key(id), CANCEL) == 1 then
    end_cancelled(id, iso_time)
  else
    put_first(id, reason)
  end
end
"""

# ARGV: ..., lease in ms, then id, token, ...
# Returns {ids that are no longer the caller's, ids that somebody wants cancelled}.
_RENEW: Final = """
local lost, unwanted = {}, {}
-- Leases are kept where no memory is left, too: only a first write that takes some is refused.
redis.call('ZREM', leases, '')
for i = 3, #ARGV, 2 do
  local job = held(ARGV[i], 'status', TOKEN, CANCEL)
  if job[1] == 'started' and job[2] == ARGV[i + 1] then
    redis.call('ZADD', leases, now + ARGV[2], ARGV[i])
    if job[3] then unwanted[#unwanted + 1] = ARGV[i] end
  else
    lost[#lost + 1] = ARGV[i]
  end
end
return {lost, unwanted}
"""

# ARGV: ..., reason, then id, token, ... with the oldest first. Returns the ids handed back.
_HAND_BACK: Final = """
local returned = {}
for i = #ARGV - 1, 3, -2 do
  local job = held(ARGV[i], 'status', TOKEN)
  if job[1] == 'started' and job[2] == ARGV[i + 1] then
    requeue(ARGV[i], ARGV[i + 1], ARGV[2])
    returned[#returned + 1] = ARGV[i]
  end
end
return returned
"""


def take_script(keys: Keys) -> str:
    """Part of a claim's transaction, after the check that the job is queued.

    From here on the job is in nobody's list. It is in the pending one if we were slow and it was
    put back meanwhile. Short, for it is sent along with each claim. ARGV: job id, lease in ms.
    """
    return f"""
local id, job = ARGV[1], '{keys.job("")}' .. ARGV[1]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
if redis.call('LREM', '{keys.intermediate}', 1, id) == 0 then
  redis.call('LREM', '{keys.pending}', 1, id)
end
redis.call('ZADD', '{keys.leases}', now + ARGV[2], id)
redis.call('ZREM', '{keys.unclaimed}', id)
redis.call('ZREM', '{keys.deadlines}', id)
local held = redis.call('HMGET', job, '{OWNER}', '{RANK}')
if held[1] then redis.call('SREM', '{keys.waiting_of("")}' .. held[1], id) end
local rank = tonumber(held[2] or '') or 0
if rank ~= rank then rank = 0 end
local class = math.floor(rank / {CLASS_SIZE})
local virtual, tag = 'now:' .. class, rank - class * {CLASS_SIZE}
if tag > (tonumber(redis.call('HGET', '{keys.fairness}', virtual) or '') or 0) then
  redis.call('HSET', '{keys.fairness}', virtual, tag)
end
-- What others put where the job's course and end are to be written would keep it from ending.
for _, key in ipairs({{'{keys.events("")}' .. id, '{keys.results("")}' .. id}}) do
  local kind = redis.call('TYPE', key).ok
  if kind ~= 'stream' and kind ~= 'none' then redis.call('DEL', key) end
end
"""


@dataclass(frozen=True, slots=True)
class Renewal:
    """Which leases could not be renewed, and which jobs somebody wants cancelled."""

    lost: list[str]
    unwanted: list[str]


class Scripts:
    """Registers scripts on the jobs that workers hold.

    Args:
        connection: A blocking client that returns bytes.
        settings: The queue's name and lifetimes.
        clock: Tells scripts the time.
    """

    def __init__(self, connection: redis.Redis, settings: Settings, clock: RedisClock) -> None:
        self._connection = connection
        self._clock = clock
        self.keys = Keys(settings.queue)
        names = {
            "TOKEN": TOKEN,
            "ATTEMPTS": ATTEMPTS,
            "CANCEL": CANCEL,
            "RANK": RANK,
            "REQUEUED": EventType.REQUEUED,
        }
        self._prelude = (
            prelude(self.keys, settings.event_ttl)
            + ending(self.keys, settings.result_ttl)
            + "".join(f"local {name} = '{value}'\n" for name, value in names.items())
            + f"local CLASS_SIZE = {CLASS_SIZE}\n"
            + f"local started, index = '{self.keys.started}', '{self.keys.index}'\n"
            + f"local finished, failed = '{self.keys.finished}', '{self.keys.failed}'\n"
            + f"local cancelled, previews = '{self.keys.cancelled}', '{self.keys.previews}'\n"
            + f"local events_of = '{self.keys.events('')}'\n"
            + _SHARED
        )

    def register(self, text: str) -> "RegisteredScript":
        """A script that follows what all share; its own arguments begin at ``ARGV[2]``."""
        return RegisteredScript(self._connection.register_script(self._prelude + text), self._clock)


@dataclass(frozen=True, slots=True)
class RegisteredScript:
    """A script that is told Redis' time in RQ's form."""

    script: Script
    clock: RedisClock

    def __call__(self, *args: str | int) -> Any:
        """Run it.

        Raises:
            redis.RedisError: Redis does not answer.
        """
        return self.script(args=[utcformat(self.clock.now()), *args])


class Leases:
    """Renews and gives up what this worker holds.

    Args:
        scripts: Registers scripts.
        settings: The lease's length.
    """

    def __init__(self, scripts: Scripts, settings: Settings) -> None:
        self.lease_ms = round(settings.lease_seconds * 1000)
        self.take = take_script(scripts.keys)
        self._renew = scripts.register(_RENEW)
        self._hand_back = scripts.register(_HAND_BACK)

    def renew(self, held: Sequence[tuple[str, str]]) -> Renewal:
        """Prolong the leases of ``held``, pairs of job id and token.

        Raises:
            redis.RedisError: Redis does not answer; nothing is known then.
        """
        if not held:
            return Renewal([], [])
        lost, unwanted = self._renew(self.lease_ms, *_flat(held))
        return Renewal(_ids(lost), _ids(unwanted))

    def hand_back(self, held: Sequence[tuple[str, str]], reason: str) -> list[str]:
        """Put jobs, oldest first, back to the front of the queue; the ids that were still ours.

        Raises:
            redis.RedisError: Redis does not answer; the leases will run out instead.
        """
        return _ids(self._hand_back(reason, *_flat(held))) if held else []


def _flat(held: Iterable[tuple[str, str]]) -> list[str]:
    return [part for pair in held for part in pair]


def _ids(reply: Any) -> list[str]:
    return [job_id.decode() for job_id in cast(list[bytes], reply)]
