"""Jobs whose spec has something that this version does not know: left to newer workers.

To draw such a job without what it asks for would be wrong, and to fail it would make every upgrade
a risk: for a while, gateways and workers of two versions share a queue. So it is set aside in a
sorted set, where it keeps nothing behind it waiting, by when a worker that understands it was last
seen. Each worker looks at the set with every heartbeat. One that understands a job takes it before
those of the queue; if for ``SUPPORT_SECONDS`` none did, the job fails.
"""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, cast
from uuid import uuid4

import redis
import structlog

from koala.settings import Settings
from worker.leases import Scripts

log = structlog.get_logger()

# Longer than it takes to replace workers one after the other.
SUPPORT_SECONDS: Final = 600

# ARGV: ..., job id. Returns whether the job was set aside now.
_SET_ASIDE: Final = """
local id = ARGV[2]
local was_popped = redis.call('LREM', intermediate, 1, id) == 1
redis.call('ZREM', unclaimed, id)
if not was_popped or held(id, 'status')[1] ~= 'queued' then return 0 end
return redis.call('ZADD', unsupported, 'NX', now, id)
"""

# ARGV: ..., job id. Makes it a job that was popped; returns whether it is the caller's to claim.
_TAKE: Final = """
if redis.call('ZREM', unsupported, ARGV[2]) == 0 then return 0 end
redis.call('RPUSH', intermediate, ARGV[2])
return 1
"""

# ARGV: ..., ids of jobs that the caller understands. Returns them in the order of the queue.
_RENEW: Final = """
local ids, ranks = {}, {}
for i = 2, #ARGV do
  local id = ARGV[i]
  if held(id, 'status')[1] ~= 'queued' then
    redis.call('ZREM', unsupported, id)
  elseif redis.call('ZSCORE', unsupported, id) then
    redis.call('ZADD', unsupported, 'XX', now, id)
    ids[#ids + 1] = id
    ranks[id] = number(held(id, RANK)[1])
  end
end
table.sort(ids, function(a, b) return ranks[a] < ranks[b] end)
return ids
"""

# ARGV: ..., token to take over with, lease in ms, patience in ms, then ids. Returns ids taken over.
_GIVE_UP: Final = """
local given_up = {}
for i = 5, #ARGV do
  local id = ARGV[i]
  local since = redis.call('ZSCORE', unsupported, id)
  if since and now - since >= tonumber(ARGV[4]) then
    if held(id, 'status')[1] == 'queued' then
      unqueue(id)
      heal(id)
      redis.call('HSET', job_key(id), 'status', 'started', TOKEN, ARGV[2])
      redis.call('ZADD', leases, now + ARGV[3], id)
      given_up[#given_up + 1] = id
    else
      redis.call('ZREM', unsupported, id)
    end
  end
end
return given_up
"""


class UnsupportedJobs:
    """Sets jobs aside, and finds those that this worker understands.

    Args:
        connection: A blocking client that returns bytes.
        scripts: Registers scripts.
        settings: The lease's length.
        lacks: The fields or values of a job, by its id, that this version does not know; ``None``
            if there are none, or if it is no job of ours at all: this worker may take it.
    """

    def __init__(
        self,
        connection: redis.Redis,
        scripts: Scripts,
        settings: Settings,
        lacks: Callable[[str], str | None],
    ) -> None:
        self._redis = connection
        self._key = scripts.keys.unsupported
        self._lease_ms = round(settings.lease_seconds * 1000)
        self._lacks = lacks
        self._set_aside = scripts.register(_SET_ASIDE)
        self._take = scripts.register(_TAKE)
        self._renew = scripts.register(_RENEW)
        self._give_up = scripts.register(_GIVE_UP)
        # What each job that is set aside lacks here; a job's spec never changes.
        self._known: dict[str, str | None] = {}
        # Written by the heartbeat, emptied by the loop.
        self._supported: deque[str] = deque()

    def set_aside(self, job_id: str, lacking: str) -> bool:
        """Leave a job that was popped to newer workers; whether it still was in the queue.

        Raises:
            redis.RedisError: Redis does not answer; the reaper puts the job back.
        """
        is_set_aside = bool(self._set_aside(job_id))
        if is_set_aside:
            log.warning("a job needs a newer worker", job_id=job_id, unknown=lacking)
        return is_set_aside

    def look(self) -> tuple[str, dict[str, str]]:
        """Find what this worker understands, and take over what no worker did for too long.

        Returns:
            The token under which jobs were taken over, and what each lacks, by its id: the caller
            has to fail them.

        Raises:
            redis.RedisError: Redis does not answer; the next look finds the same.
        """
        entries = cast(list[bytes], self._redis.zrange(self._key, 0, -1))
        ids = []
        for entry in entries:
            try:
                ids.append(entry.decode())
            except UnicodeDecodeError:
                # No job can have such an id.
                self._redis.zrem(self._key, entry)
        known, self._known = self._known, {}
        for job_id in ids:
            self._known[job_id] = known[job_id] if job_id in known else self._lacks(job_id)
        supported = [job_id for job_id in ids if self._known[job_id] is None]
        self._supported = deque(_ids(self._renew(*supported)) if supported else ())
        lacking = {job_id: lack for job_id, lack in self._known.items() if lack is not None}
        token = uuid4().hex
        if not lacking:
            return token, {}
        patience_ms = SUPPORT_SECONDS * 1000
        overdue = _ids(self._give_up(token, self._lease_ms, patience_ms, *lacking))
        return token, {job_id: lacking[job_id] for job_id in overdue}

    def take(self) -> str | None:
        """The next job that this worker understands, popped now; ``None``: there is none.

        Raises:
            redis.RedisError: Redis does not answer; the next look finds the job again.
        """
        while self._supported:
            job_id = self._supported.popleft()
            if self._take(job_id):
                return job_id
        return None


def _ids(reply: object) -> Sequence[str]:
    return [job_id.decode() for job_id in cast(list[bytes], reply)]
