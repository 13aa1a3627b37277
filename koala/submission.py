"""Admission: the one atomic step that lets a job into the queue, or refuses it."""

import hashlib
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, cast

import redis.asyncio
from rq.job import Job

from koala.events import EventType
from koala.keys import Keys
from koala.scripts import DEADLINE, KEPT, OWNER, RANK, WEBHOOK, cost, prelude, priority_class
from koala.settings import Settings
from koala.spec import JobSpec

# How long a client may come back with the same Idempotency-Key.
IDEMPOTENCY_SECONDS: Final = 86_400

# Old entries of an owner's index that each admission looks at: more than it adds.
_PRUNED: Final = 4

# ARGV: limit, the owner's limit or 0, job id, class, cost, owner, key of the Idempotency-Key or
#       '', digest of the body, then field, value, ... of the job hash
# Returns {an Outcome, a number: jobs ahead or jobs waiting, the other job's id and digest}.
_ADMIT: Final = """
local limit, owner_limit, id = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3]
local class, cost, owner = ARGV[4], tonumber(ARGV[5]), ARGV[6]
local idempotency, digest = ARGV[7], ARGV[8]
local created = string.format('%%.6f', time[1] + time[2] / 1000000)

-- The reply to a first try can get lost, and the client sends the script again.
if redis.call('EXISTS', job_key(id)) == 1 then return {'admitted', 0} end
local earlier = idempotency ~= '' and redis.call('HMGET', idempotency, 'job', 'body')
if earlier and earlier[1] and redis.call('EXISTS', job_key(earlier[1])) == 1 then
  return {'known', 0, earlier[1], earlier[2]}
end

local queued = redis.call('LLEN', pending) + redis.call('LLEN', intermediate)
  + redis.call('ZCARD', unsupported)
if queued >= limit then return {'full', queued} end
local waiting = waiting_of(owner)
if owner_limit > 0 and redis.call('SCARD', waiting) >= owner_limit then
  for _, other in ipairs(redis.call('SMEMBERS', waiting)) do
    if held(other, 'status')[1] ~= 'queued' then
      redis.call('SREM', waiting, other)
    end
  end
  local own = redis.call('SCARD', waiting)
  if own >= owner_limit then return {'owner_full', own} end
end

-- A server without memory refuses a script's first write, if that takes memory, and none behind it.
redis.call('SADD', 'rq:queues', pending)
if queued == 0 then redis.call('DEL', fairness) end
local last = 'last:' .. class .. ':' .. owner
local tag = math.max(virtual_time(class), number(redis.call('HGET', fairness, last)))
redis.call('HSET', fairness, last, tag + cost)
redis.call('HSET', job_key(id), %(rank)s, rank_of(class, tag), unpack(ARGV, 9))
local ahead = insert(id, rank_of(class, tag), false)

redis.call('ZADD', index, created, id)
if owner ~= '' then
  local own_index = index_of .. owner
  for _, other in ipairs(redis.call('ZRANGE', own_index, 0, %(pruned)d - 1)) do
    if redis.call('EXISTS', job_key(other)) == 0 then redis.call('ZREM', own_index, other) end
  end
  redis.call('ZADD', own_index, created, id)
  redis.call('EXPIRE', own_index, %(index_ttl)d)
end
if idempotency ~= '' then
  redis.call('HSET', idempotency, 'job', id, 'body', digest)
  redis.call('EXPIRE', idempotency, %(seconds)d)
end
tell(id, '%(queued)s', '{}')
return {'admitted', ahead}
"""


class Outcome(StrEnum):
    """What admission said."""

    ADMITTED = "admitted"
    KNOWN = "known"
    FULL = "full"
    OWNER_FULL = "owner_full"


@dataclass(frozen=True, slots=True)
class Idempotency:
    """A client's ``Idempotency-Key``, and the digest of the body that it came with."""

    key: str
    body_digest: str


@dataclass(frozen=True, slots=True)
class Answer:
    """What admission said, in numbers.

    ``count`` is the jobs ahead of an admitted one, or the waiting ones that fill the queue.
    ``known`` is the job and the digest of the body that the ``Idempotency-Key`` stands for.
    """

    outcome: Outcome
    count: int
    known: tuple[str, str] | None = None


class Submission:
    """Runs the script.

    Args:
        connection: An asyncio client that returns bytes.
        settings: Bounds and lifetimes.
        keys: Keys of the queue.
    """

    def __init__(self, connection: redis.asyncio.Redis, settings: Settings, keys: Keys) -> None:
        self._keys = keys
        self._limit = settings.max_queued
        self._script = connection.register_script(
            prelude(keys, settings.event_ttl)
            + f"local index, index_of = '{keys.index}', '{keys.index_of('')}'\n"
            + _ADMIT
            % {
                "rank": f"'{RANK}'",
                "pruned": _PRUNED,
                "index_ttl": settings.event_ttl,
                "seconds": IDEMPOTENCY_SECONDS,
                "queued": EventType.QUEUED,
            }
        )

    async def admit(
        self,
        job: Job,
        spec: JobSpec,
        *,
        owner_limit: int | None = None,
        idempotency: Idempotency | None = None,
        kept: bool = False,
    ) -> Answer:
        """Put a job that is built into the queue, at the place that its rank gives it.

        Args:
            job: RQ's job.
            spec: What it is to do.
            owner_limit: Most jobs of its owner that may wait.
            idempotency: The client's key; a job it stands for already is the answer then.
            kept: The job is to go on when the client that sent it hangs up.
        """
        fields = job.to_dict() | _fields(spec, kept=kept or idempotency is not None)
        key = digest = ""
        if idempotency is not None:
            name = hashlib.sha256(idempotency.key.encode()).hexdigest()
            key, digest = self._keys.idempotency(spec.owner, name), idempotency.body_digest
        reply = await self._script(
            args=[
                self._limit,
                owner_limit or 0,
                job.id,
                priority_class(spec.priority),
                cost(spec),
                spec.owner,
                key,
                digest,
                *(part for item in fields.items() for part in item),
            ]
        )
        outcome, count, *known = cast(list[Any], reply)
        return Answer(
            Outcome(outcome.decode()),
            count,
            (known[0].decode(), known[1].decode()) if known else None,
        )


def _fields(spec: JobSpec, *, kept: bool) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    if spec.owner:
        fields[OWNER] = spec.owner
    if spec.deadline is not None:
        fields[DEADLINE] = round(spec.deadline * 1000)
    if spec.webhook_url is not None:
        fields[WEBHOOK] = 1
    if kept:
        fields[KEPT] = 1
    return fields
