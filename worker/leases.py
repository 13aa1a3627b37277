"""Leases: a job belongs to a worker only as long as the worker keeps saying so.

A claimed job has a token in its hash, the id of its RQ execution, and an entry in the sorted set
of leases. Whoever changes a started job checks the token in the same atomic step, so a worker that
was frozen past its lease can neither renew nor finish what is no longer its own.
"""

from collections.abc import Mapping, Sequence
from typing import Final, cast

import redis
from redis.commands.core import Script

from koala.events import EventType
from koala.keys import JOB_PREFIX, Keys
from koala.settings import Settings

# The field of a job's hash that names the execution it belongs to.
TOKEN: Final = "koala_execution"
# The field that counts the workers a job has seen die.
ATTEMPTS: Final = "koala_attempts"

# What the scripts share. Time is the server's own, so that clocks of workers need not agree.
# KEYS: pending, intermediate, started, leases, unclaimed, index
# ARGV: prefix of event streams, their ttl, wake channel, ...
PRELUDE: Final = f"""
local pending, intermediate, started, leases, unclaimed, index = unpack(KEYS)
local events, event_ttl, wake = unpack(ARGV)
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

local function job_key(id) return '{JOB_PREFIX}' .. id end

local function end_execution(id, token)
  local worker = redis.call('HGET', job_key(id), 'worker_name')
  redis.call('ZREM', started, id .. ':' .. token)
  redis.call('ZREM', 'rq:executions:' .. id, token)
  redis.call('DEL', 'rq:execution:' .. id .. ':' .. token)
  if worker then
    redis.call('SREM', 'rq:worker:' .. worker .. ':executions', id .. ':' .. token)
  end
end

local function tell_requeued(id, reason)
  local attempts = redis.call('HGET', job_key(id), '{ATTEMPTS}') or '0'
  local data = '{{"reason":"' .. reason .. '","attempts":' .. attempts .. '}}'
  redis.call('XADD', events .. id, '*', 'type', '{EventType.REQUEUED}', 'data', data)
  redis.call('EXPIRE', events .. id, event_ttl)
  redis.call('PUBLISH', wake, id .. ' {EventType.REQUEUED}')
end

local function requeue(id, token, reason)
  end_execution(id, token)
  redis.call('HSET', job_key(id), 'status', 'queued', 'worker_name', '', 'started_at', '')
  redis.call('HDEL', job_key(id), '{TOKEN}')
  redis.call('ZREM', leases, id)
  redis.call('LPUSH', pending, id)
  tell_requeued(id, reason)
end
"""

# ARGV: ..., lease in ms, then id, token, ... Returns the ids that are no longer the caller's.
_RENEW: Final = (
    PRELUDE
    + f"""
local lost = {{}}
for i = 5, #ARGV, 2 do
  local held = redis.call('HMGET', job_key(ARGV[i]), 'status', '{TOKEN}')
  if held[1] == 'started' and held[2] == ARGV[i + 1] then
    redis.call('ZADD', leases, now + ARGV[4], ARGV[i])
  else
    lost[#lost + 1] = ARGV[i]
  end
end
return lost
"""
)

# ARGV: ..., reason, then id, token, ... with the oldest first. Returns the ids handed back.
_HAND_BACK: Final = (
    PRELUDE
    + f"""
local returned = {{}}
for i = #ARGV - 1, 5, -2 do
  local held = redis.call('HMGET', job_key(ARGV[i]), 'status', '{TOKEN}')
  if held[1] == 'started' and held[2] == ARGV[i + 1] then
    requeue(ARGV[i], ARGV[i + 1], ARGV[4])
    returned[#returned + 1] = ARGV[i]
  end
end
return returned
"""
)

# Part of a claim's transaction, after the check that the job is queued: from here on the job is
# in nobody's list. It is in the pending one if we were slow and it was put back meanwhile.
TAKE: Final = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
if redis.call('LREM', KEYS[2], 1, ARGV[1]) == 0 then redis.call('LREM', KEYS[1], 1, ARGV[1]) end
redis.call('ZADD', KEYS[4], now + ARGV[2], ARGV[1])
redis.call('ZREM', KEYS[5], ARGV[1])
"""


class Leases:
    """Renews and gives up what this worker holds; knows what all scripts need.

    Args:
        connection: A blocking client that returns bytes.
        settings: The queue's name and the lease's length.
    """

    def __init__(self, connection: redis.Redis, settings: Settings) -> None:
        keys = Keys(settings.queue)
        self.lease_ms = round(settings.lease_seconds * 1000)
        self.event_ttl = settings.result_ttl + settings.job_timeout
        self.script_keys = [
            keys.pending,
            keys.intermediate,
            keys.started,
            keys.leases,
            keys.unclaimed,
            keys.index,
        ]
        self.script_args: list[str | int] = [keys.events(""), self.event_ttl, keys.wake]
        self._renew = connection.register_script(_RENEW)
        self._hand_back = connection.register_script(_HAND_BACK)

    def renew(self, held: Mapping[str, str]) -> list[str]:
        """Prolong the leases of ``held`` (job id to token); the ids that are lost.

        Raises:
            redis.RedisError: Redis does not answer; nothing is known then.
        """
        if not held:
            return []
        return self._run(self._renew, self.lease_ms, list(held.items()))

    def hand_back(self, held: Sequence[tuple[str, str]], reason: str) -> list[str]:
        """Put jobs, oldest first, back to the front of the queue; the ids that were still ours.

        Raises:
            redis.RedisError: Redis does not answer; the leases will run out instead.
        """
        return self._run(self._hand_back, reason, held) if held else []

    def _run(
        self,
        script: Script,
        argument: str | int,
        held: Sequence[tuple[str, str]],
    ) -> list[str]:
        pairs = [part for pair in held for part in pair]
        ids = script(keys=self.script_keys, args=[*self.script_args, argument, *pairs])
        return [job_id.decode() for job_id in cast(list[bytes], ids)]
