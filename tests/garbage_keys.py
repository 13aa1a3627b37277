"""Ways to damage what is stored of a job, for tests of who reads it."""

from typing import Any, Final

import redis
from hypothesis import strategies as st

from koala.keys import Keys

_FIELDS: Final = (
    "status", "created_at", "started_at", "ended_at", "data", "timeout", "meta", "koala_attempts",
    "koala_rank", "koala_deadline", "koala_execution",
)  # fmt: skip
_VALUES: Final = (b"", b"\xff", b"[", b"nan", b"-1", b'{"a":1}', b"unheard-of")
_JUNK: Final = ("string", "list", "zset", "hash", "json", "data", "bytes")

# One way: a field of the job's hash and its value, or one of its keys and what is there instead.
DAMAGE: Final = st.one_of(
    st.tuples(st.sampled_from(_FIELDS), st.sampled_from(_VALUES)),
    st.tuples(st.sampled_from(["job", "events", "results"]), st.sampled_from(_JUNK)),
)


def damage(connection: redis.Redis, keys: Keys, job_id: str, where: str, what: Any) -> None:
    """Damage a job in a way of ``DAMAGE``."""
    if where in _FIELDS:
        if connection.type(keys.job(job_id)) == b"hash":
            connection.hset(keys.job(job_id), where, what)
        return
    key = getattr(keys, where)(job_id)
    connection.delete(key)
    match what:
        case "string":
            connection.set(key, b"\xff\x00")
        case "list":
            connection.rpush(key, "a", "b")
        case "zset":
            connection.zadd(key, {b"\xfe": 1.5})
        case "hash":
            connection.hset(key, mapping={b"\xfe": b"\xfe"})
        case "json":
            connection.xadd(key, {"type": "step", "data": "{"})
        case "data":
            connection.xadd(key, {"type": "step", "data": '{"step":"x"}'})
        case "bytes":
            connection.xadd(key, {b"\xff": b"\xff"})


def litter(connection: redis.Redis, keys: Keys) -> None:
    """Put entries that stand for nothing among those that all jobs share."""
    members = {b"\xff\xfe": 2**40, "": 1, "job_": 2, "job_0:gone": 3}
    for key in (
        *(keys.leases, keys.index, keys.outbox, keys.deadlines, keys.unclaimed),
        *(keys.unsupported, keys.cancelled, keys.finished),
    ):
        connection.zadd(key, members)
    connection.hset(keys.workers, mapping={b"\xff": b"\xff", "odd": '{"expires_at":'})
