"""The reaper: finds jobs that nobody works on any more and puts them back.

Every worker runs it, also while idle; each pass is one atomic script, so two of them at once do no
harm.
"""

from dataclasses import dataclass
from typing import Final, cast
from uuid import uuid4

from koala.settings import Settings
from worker.leases import Scripts

# How many entries one pass looks at, so that a script never holds the server up for long.
_PER_PASS: Final = 200
_PREVIEWS_PER_PASS: Final = 20

# Who watches a job sees its last previews even after a short interruption.
PREVIEW_SECONDS: Final = 60

# ARGV: ..., most attempts, lease in ms, grace in ms for popped jobs, token to take over with,
#       entries per pass, how long previews are kept after a job's end in ms, jobs with previews
#       per pass
# Returns {requeued ids, put back ids, {id, attempts, ...} of jobs taken over to be failed, ids of
# those taken over because they are late}.
_REAP: Final = """
local max_attempts, lease = tonumber(ARGV[2]), tonumber(ARGV[3])
local grace, token, per_pass = tonumber(ARGV[4]), ARGV[5], tonumber(ARGV[6])
local shown_for, previews_per_pass = tonumber(ARGV[7]), tonumber(ARGV[8])
local requeued, put_back, poisoned, late = {}, {}, {}, {}

-- RQ's own clean-up goes by the clock of the machine that it runs on. Also the first write: with
-- one that takes memory, a server that has none left would refuse the script, and to free memory.
for _, registry in ipairs({finished, failed, cancelled}) do
  redis.call('ZREMRANGEBYSCORE', registry, 0, time[1])
end

local function take_over(id)
  heal(id)
  redis.call('HSET', job_key(id), 'status', 'started', TOKEN, token)
  redis.call('ZADD', leases, now + lease, id)
end

local abandoned = {}
for _, id in ipairs(redis.call('ZRANGEBYSCORE', leases, 0, now, 'LIMIT', 0, per_pass)) do
  local job = held(id, 'status', TOKEN, ATTEMPTS, 'created_at')
  if job[1] == 'started' and job[2] then
    abandoned[#abandoned + 1] = {id, job[2], number(job[3]), job[4] or ''}
  else
    redis.call('ZREM', leases, id)
  end
end
-- Each goes to the front of the queue, so the oldest one goes last.
table.sort(abandoned, function(a, b) return a[4] > b[4] end)
for _, job in ipairs(abandoned) do
  local id, held_by, attempts = job[1], job[2], job[3]
  -- A job at the limit was taken over before, by a reaper that died before it could fail it.
  if attempts < max_attempts then
    attempts = attempts + 1
    redis.call('HSET', job_key(id), ATTEMPTS, attempts)
  end
  if attempts < max_attempts then
    requeue(id, held_by, 'worker_died')
    requeued[#requeued + 1] = id
  else
    end_execution(id, held_by)
    take_over(id)
    poisoned[#poisoned + 1] = id
    poisoned[#poisoned + 1] = tostring(attempts)
  end
end

local popped = {}
for _, id in ipairs(redis.call('LRANGE', intermediate, 0, per_pass - 1)) do
  popped[id] = true
  if held(id, 'status')[1] ~= 'queued' then
    redis.call('LREM', intermediate, 1, id)
    redis.call('ZREM', unclaimed, id)
  else
    redis.call('ZADD', unclaimed, 'NX', now, id)
    if now - redis.call('ZSCORE', unclaimed, id) >= grace then
      unqueue(id)
      put_first(id, 'never_claimed')
      put_back[#put_back + 1] = id
    end
  end
end
for _, id in ipairs(redis.call('ZRANGE', unclaimed, 0, per_pass - 1)) do
  if not popped[id] then redis.call('ZREM', unclaimed, id) end
end

for _, id in ipairs(redis.call('ZRANGEBYSCORE', deadlines, 0, now, 'LIMIT', 0, per_pass)) do
  if held(id, 'status')[1] == 'queued' then
    unqueue(id)
    take_over(id)
    late[#late + 1] = id
  else
    redis.call('ZREM', deadlines, id)
  end
end

for _, id in ipairs(redis.call('ZRANGE', index, 0, per_pass - 1)) do
  if redis.call('EXISTS', job_key(id)) == 0 then redis.call('ZREM', index, id) end
end
for _, entry in ipairs(redis.call('ZRANGE', started, 0, per_pass - 1)) do
  local id, held_by = string.match(entry, '^(.*):(.-)$')
  local job = held(id or entry, 'status', TOKEN)
  if job[1] ~= 'started' or (job[2] and job[2] ~= held_by) then
    redis.call('ZREM', started, entry)
  end
end
-- Previews are by far the most of what is stored of a job, and no client watches them afterwards.
local function forget_previews(id)
  heal(id)
  local events = events_of .. id
  local entries, ttl = redis.call('XRANGE', events, '-', '+'), redis.call('PTTL', events)
  redis.call('DEL', events)
  for _, entry in ipairs(entries) do
    -- Each entry is written type first.
    if entry[2][2] ~= 'preview' then redis.call('XADD', events, entry[1], unpack(entry[2])) end
  end
  if ttl > 0 then redis.call('PEXPIRE', events, ttl) end
end
for _, id in ipairs(redis.call('ZRANGEBYSCORE', previews, 0, now, 'LIMIT', 0, previews_per_pass)) do
  local status = held(id, 'status')[1]
  local last = redis.pcall('XREVRANGE', events_of .. id, '+', '-', 'COUNT', 1)
  local told_at = last[1] and number(string.match(last[1][1], '^%d+')) or 0
  if status == 'queued' or status == 'started' then
    redis.call('ZADD', previews, now + shown_for, id)
  elseif now < told_at + shown_for then
    redis.call('ZADD', previews, told_at + shown_for, id)
  else
    redis.call('ZREM', previews, id)
    forget_previews(id)
  end
end
return {requeued, put_back, poisoned, late}
"""


@dataclass(frozen=True, slots=True)
class Reaped:
    """What one pass found.

    ``requeued`` jobs were held by a worker that died, ``put_back`` ones popped and never claimed.
    ``poisoned`` (job id to number of dead workers) and ``late`` ones now belong to the caller under
    ``token``, who has to fail them.
    """

    requeued: list[str]
    put_back: list[str]
    poisoned: dict[str, int]
    late: list[str]
    token: str


class Reaper:
    """Runs the passes.

    Args:
        scripts: Registers scripts.
        settings: The most attempts, and the lease.
    """

    def __init__(self, scripts: Scripts, settings: Settings) -> None:
        self._max_attempts = settings.max_attempts
        self._lease_ms = round(settings.lease_seconds * 1000)
        self._script = scripts.register(_REAP)

    def reap(self) -> Reaped:
        """One pass over expired leases, unclaimed jobs, deadlines, the index and RQ's registries.

        Raises:
            redis.RedisError: Redis does not answer; nothing was changed, or all of it.
        """
        token = uuid4().hex
        # A claim follows a pop within milliseconds; half a lease is generous.
        grace_ms = self._lease_ms // 2
        reply = self._script(
            self._max_attempts,
            self._lease_ms,
            grace_ms,
            token,
            _PER_PASS,
            1000 * PREVIEW_SECONDS,
            _PREVIEWS_PER_PASS,
        )
        requeued, put_back, poisoned, late = (
            [item.decode() for item in part] for part in cast(list[list[bytes]], reply)
        )
        return Reaped(
            requeued=requeued,
            put_back=put_back,
            poisoned=dict(zip(poisoned[::2], map(int, poisoned[1::2]), strict=True)),
            late=late,
            token=token,
        )
