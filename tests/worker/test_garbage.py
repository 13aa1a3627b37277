"""A worker on a queue in which others have left what is none of a job."""

from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.garbage_keys import DAMAGE, damage, litter
from tests.worker.claims import claim
from tests.worker.rig import Rig


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    damages=st.lists(DAMAGE, min_size=1, max_size=3),
    state=st.sampled_from(["queued", "popped", "held", "late", "set aside"]),
)
def test_whatever_is_stored_of_one_job_the_others_are_drawn(
    rig: Rig, damages: list[tuple[str, Any]], state: str
) -> None:
    rig.redis.flushdb()
    keys, bad = rig.keys, rig.submit(seed=1)
    if state == "held":
        claim(rig, rig.worker())
        rig.expire_lease(bad)
    elif state == "late":
        rig.redis.zadd(keys.deadlines, {bad: 1})
    elif state in ("popped", "set aside"):
        rig.redis.lmove(keys.pending, keys.intermediate)
        rig.redis.zadd(keys.unclaimed, {bad: 1})
    if state == "set aside":
        rig.redis.lrem(keys.intermediate, 1, bad)
        rig.redis.zadd(keys.unsupported, {bad: 1})
    for where, what in damages:
        damage(rig.redis, keys, bad, where, what)
    litter(rig.redis, keys)
    good = [rig.submit(seed=seed) for seed in (2, 3)]

    rig.work()
    for _ in range(2):
        rig.worker()._upkeep.reap()

    assert [rig.record(job_id).state for job_id in good] == ["completed", "completed"]
    assert rig.redis.llen(keys.intermediate) == 0
    for key in (keys.deadlines, keys.unsupported, keys.unclaimed):
        assert bad not in [
            member.decode(errors="replace") for member in rig.redis.zrange(key, 0, -1)
        ]
