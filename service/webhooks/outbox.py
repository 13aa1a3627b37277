"""The outbox in Redis: which ended jobs have a webhook that is due.

A sorted set of job ids by the time of the next try. A claim moves that time to the end of a lease
and is good as long as nobody moved it again: so two gateways do not deliver at once, and what a
dying gateway held is due again by itself. Attempts are counted in the job's hash.
"""

from dataclasses import dataclass
from typing import Final

import redis.asyncio

from koala.keys import JOB_PREFIX, Keys

# Far longer than an attempt may take.
LEASE_SECONDS: Final = 60

_ATTEMPTS: Final = "koala_webhook_attempts"

# The server's own time, so that clocks of gateways need not agree. An attempt counts from the
# claim on: a message that ends whoever sends it must not be tried for ever.
# KEYS: outbox  ARGV: lease in s, most entries  Returns {id, end of lease, attempts, ...}
_CLAIM: Final = f"""
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
local claims = {{}}
local due = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', string.format('%.6f', now),
                       'LIMIT', 0, ARGV[2])
local lease_end = string.format('%.6f', now + ARGV[1])
for _, id in ipairs(due) do
  local job, attempts = '{JOB_PREFIX}' .. id, 0
  local counted = redis.call('EXISTS', job) == 1 and redis.pcall('HINCRBY', job, '{_ATTEMPTS}', 1)
  -- A table is an error: the key is no job, or the count no number.
  if type(counted) == 'number' then
    attempts = counted
    redis.call('ZADD', KEYS[1], lease_end, id)
  else
    redis.call('ZREM', KEYS[1], id)
  end
  claims[#claims + 1] = id
  claims[#claims + 1] = lease_end
  claims[#claims + 1] = attempts
end
return claims
"""

# KEYS: outbox  ARGV: id, end of lease, delay in s, what to add to the attempts
_PUT_OFF: Final = f"""
local lease_end = redis.call('ZSCORE', KEYS[1], ARGV[1])
if not lease_end or tonumber(lease_end) ~= tonumber(ARGV[2]) then return 0 end
local time = redis.call('TIME')
local due = time[1] + time[2] / 1000000 + ARGV[3]
redis.call('ZADD', KEYS[1], string.format('%.6f', due), ARGV[1])
local job = '{JOB_PREFIX}' .. ARGV[1]
if redis.call('EXISTS', job) == 1 then redis.call('HINCRBY', job, '{_ATTEMPTS}', ARGV[4]) end
return 1
"""


@dataclass(frozen=True, slots=True)
class Claim:
    """A webhook that is ours to deliver until its lease is over.

    ``attempts`` counts this one too; 0 says that the job has expired and there is nothing to send.
    """

    job_id: str
    lease_end: str
    attempts: int


class Outbox:
    """The outbox of one queue. All its calls raise ``redis.RedisError`` while Redis is away."""

    def __init__(self, connection: redis.asyncio.Redis, keys: Keys) -> None:
        self._redis = connection
        self._key = keys.outbox
        self._claim = connection.register_script(_CLAIM)
        self._put_off = connection.register_script(_PUT_OFF)

    async def claim(self, most: int) -> list[Claim]:
        """Up to ``most`` webhooks that are due, the longest due first."""
        reply = await self._claim(keys=[self._key], args=[LEASE_SECONDS, most])
        return [
            Claim(reply[i].decode(errors="replace"), reply[i + 1].decode(), int(reply[i + 2]))
            for i in range(0, len(reply), 3)
        ]

    async def remove(self, claim: Claim) -> None:
        """Delivered or given up."""
        await self._redis.zrem(self._key, claim.job_id)

    async def put_off(self, claim: Claim, seconds: float) -> None:
        """Due again after ``seconds``; nothing happens if the claim is not good any more."""
        await self._put_off(keys=[self._key], args=[claim.job_id, claim.lease_end, seconds, 0])

    async def give_back(self, claim: Claim, seconds: float = 0.0) -> None:
        """The same for a claim that nothing was tried with."""
        await self._put_off(keys=[self._key], args=[claim.job_id, claim.lease_end, seconds, -1])
