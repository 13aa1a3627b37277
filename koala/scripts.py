"""What the scripts that run inside Redis share: names, the order of the queue, how jobs leave it.

A queue is one Redis server's business: keys are written into the scripts, so they do not work on a
cluster. Time is the server's own, so that clocks of machines need not agree.

The queue is RQ's list, kept in the order of each job's rank: its priority, and within that the
start tag of start-time fair queueing (Goyal, Vin, Cheng: "Start-Time Fair Queueing", SIGCOMM 1996).
A job's tag is the end of its owner's previous job in virtual time, or the virtual time now if that
is later; virtual time is the tag of the job claimed last. So an owner with one job never waits for
the many of another, and owners who all have jobs waiting get equal shares of the drawing.
"""

from typing import Final

from rq.job import JobStatus

from koala.events import MAX_EVENTS, EventType
from koala.keys import JOB_PREFIX, Keys
from koala.spec import JobSpec, Priority

# Fields of a job's hash beside RQ's own.
TOKEN: Final = "koala_execution"  # the execution the job belongs to
ATTEMPTS: Final = "koala_attempts"  # workers it has seen die
OWNER: Final = "koala_owner"
RANK: Final = "koala_rank"
DEADLINE: Final = "koala_deadline"  # in ms since 1970
KEPT: Final = "koala_kept"  # somebody beside its first client knows the job
CANCEL: Final = "koala_cancel"  # it is running and should be stopped
WEBHOOK: Final = "koala_webhook"  # its end is to be delivered

# Apart by more than any tag grows while the queue is never empty.
CLASS_SIZE: Final = 10**13
_CLASSES: Final[dict[Priority, int]] = {"high": 0, "normal": 1, "low": 2}

# One unit of cost: a row of the U-Net at this many pixels, for one step.
_PIXELS_PER_UNIT: Final = 256 * 256


def priority_class(priority: Priority) -> int:
    """The number that jobs of a priority are ranked by first; less is sooner."""
    return _CLASSES[priority]


def cost(spec: JobSpec) -> float:
    """What a job takes of the device, in rows of 256x256 pixels of U-Net calls."""
    rows = 2 if spec.guidance_scale > 1 else 1
    return spec.n * spec.unet_calls * rows * spec.width * spec.height / _PIXELS_PER_UNIT


def prelude(keys: Keys, event_ttl: int) -> str:
    """Lua functions for scripts on the queue of ``keys``.

    ``insert(id, rank, first_of_equals)`` puts a queued job into the list, at the place of
    ``rank_of(class, tag)``; ``unqueue(id)`` takes it out of wherever it waits; ``tell(id, type,
    data)`` publishes an event; ``held(id, ...)`` reads fields of a job. One damaged job must not
    stop a script that is about many, so nothing here fails over what a job's own keys hold.

    Args:
        keys: Keys of the queue.
        event_ttl: Seconds that a stream of events is kept.
    """
    return f"""
local pending, intermediate = '{keys.pending}', '{keys.intermediate}'
local leases, unclaimed = '{keys.leases}', '{keys.unclaimed}'
local deadlines, fairness = '{keys.deadlines}', '{keys.fairness}'
local unsupported = '{keys.unsupported}'
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

local function job_key(id) return '{JOB_PREFIX}' .. id end
local function waiting_of(owner) return '{keys.waiting_of("")}' .. owner end
local function rank_of(class, tag) return class * {CLASS_SIZE} + tag end
-- Fields of a job's hash; all nil where that is something else.
local function held(id, ...)
  local found = redis.pcall('HMGET', job_key(id), ...)
  if found.err then return {{}} end
  return found
end

-- 0 for what is no number; "nan" is one to Lua, though not to itself.
local function number(text)
  local value = tonumber(text or '')
  if value and value == value and math.abs(value) < 2 ^ 53 then return value end
  return 0
end

-- Removes what others put where the job's course and end are written, so that it can end.
local function heal(id)
  for _, key in ipairs({{'{keys.events("")}' .. id, '{keys.results("")}' .. id}}) do
    local kind = redis.call('TYPE', key).ok
    if kind ~= 'stream' and kind ~= 'none' then redis.call('DEL', key) end
  end
end

local function virtual_time(class)
  return number(redis.call('HGET', fairness, 'now:' .. class))
end

local function insert(id, rank, first_of_equals)
  local low, high = 0, redis.call('LLEN', pending)
  local length = high
  while low < high do
    local middle = math.floor((low + high) / 2)
    local other = number(held(redis.call('LINDEX', pending, middle), '{RANK}')[1])
    if other > rank or (first_of_equals and other == rank) then
      high = middle
    else
      low = middle + 1
    end
  end
  if low == length then
    redis.call('RPUSH', pending, id)
  else
    redis.call('LINSERT', pending, 'BEFORE', redis.call('LINDEX', pending, low), id)
  end
  local job = held(id, '{OWNER}', '{DEADLINE}')
  if job[1] then redis.call('SADD', waiting_of(job[1]), id) end
  if job[2] then redis.call('ZADD', deadlines, number(job[2]), id) end
  return low
end

local function unqueue(id)
  redis.call('LREM', pending, 1, id)
  redis.call('LREM', intermediate, 1, id)
  redis.call('ZREM', unclaimed, id)
  redis.call('ZREM', unsupported, id)
  redis.call('ZREM', deadlines, id)
  local owner = held(id, '{OWNER}')[1]
  if owner then redis.call('SREM', waiting_of(owner), id) end
end

local function tell(id, type, data)
  local events = '{keys.events("")}' .. id
  heal(id)
  redis.call('XADD', events, 'MAXLEN', {MAX_EVENTS}, '*', 'type', type, 'data', data)
  redis.call('EXPIRE', events, {event_ttl})
  redis.call('PUBLISH', '{keys.wake}', id .. ' ' .. type)
end
"""


def ending(keys: Keys, result_ttl: int) -> str:
    """A Lua function that ends a job which nobody holds: ``end_cancelled(id, iso_time)``.

    To follow :func:`prelude`. It leaves the records that RQ's ``Job.cancel`` does, expiring.

    Args:
        keys: Keys of the queue.
        result_ttl: Seconds that an ended job is kept.
    """
    return f"""
local function end_cancelled(id, iso_time)
  unqueue(id)
  redis.call('HSET', job_key(id), 'status', '{JobStatus.CANCELED.value}', 'ended_at', iso_time)
  redis.call('EXPIRE', job_key(id), {result_ttl})
  redis.call('ZADD', '{keys.cancelled}', time[1] + {result_ttl}, id)
  tell(id, '{EventType.CANCELLED}', '{{}}')
  if redis.call('HEXISTS', job_key(id), '{WEBHOOK}') == 1 then
    redis.call('ZADD', '{keys.outbox}', time[1], id)
  end
end
"""
