"""Whose turn it is: fairness between owners, priorities, and jobs that come back."""

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from koala.scripts import cost
from tests.support import spec
from tests.worker.claims import claim, leases, pending, pop, reaper
from tests.worker.rig import Rig


def submit(rig: Rig, owner: str, **changes: object) -> str:
    return rig.submit(owner=owner, **changes)


def test_a_single_job_overtakes_all_but_one_of_another_owners_many(rig: Rig) -> None:
    worker = rig.worker()
    many = [submit(rig, "busy") for _ in range(50)]
    claim(rig, worker)
    claim(rig, worker)

    single = submit(rig, "rare")

    assert pending(rig) == [single, *many[2:]]
    assert rig.record(single).position == 0
    assert rig.record(many[2]).position == 1


def test_owners_with_jobs_waiting_take_turns(rig: Rig) -> None:
    first = [submit(rig, "a") for _ in range(4)]
    second = [submit(rig, "b") for _ in range(4)]

    assert pending(rig) == [job for pair in zip(first, second, strict=True) for job in pair]


def test_turns_are_weighed_by_what_jobs_cost(rig: Rig) -> None:
    dear = [submit(rig, "dear", n=4) for _ in range(3)]
    cheap = [submit(rig, "cheap") for _ in range(9)]

    # Four cheap ones weigh as much as one dear one.
    assert pending(rig) == [dear[0], *cheap[:4], dear[1], *cheap[4:8], dear[2], cheap[8]]


def test_the_cost_of_a_job_is_rows_times_steps_times_pixels() -> None:
    one = cost(spec(width=256, height=256, num_inference_steps=1, guidance_scale=0))
    assert one == 1
    assert cost(spec(width=512, height=256, num_inference_steps=10, guidance_scale=3, n=2)) == 80
    twice = spec(width=256, height=256, num_inference_steps=1, guidance_scale=0, scheduler="heun")
    assert cost(twice) == 2 * one


def test_an_owner_gains_nothing_by_having_been_away(rig: Rig) -> None:
    worker = rig.worker()
    busy = [submit(rig, "busy") for _ in range(6)]
    for _ in range(4):
        claim(rig, worker)
    late = [submit(rig, "late") for _ in range(3)]

    assert pending(rig) == [late[0], busy[4], late[1], busy[5], late[2]]


def test_the_past_is_forgotten_once_nobody_waits(rig: Rig) -> None:
    worker = rig.worker()
    for _ in range(5):
        submit(rig, "busy")
        claim(rig, worker)

    first, second = submit(rig, "busy"), submit(rig, "rare")

    assert pending(rig) == [first, second]


@pytest.mark.parametrize("owner", ["", "somebody"])
def test_priorities_come_first_and_in_order_of_arrival(rig: Rig, owner: str) -> None:
    low = [submit(rig, owner, priority="low") for _ in range(2)]
    normal = [submit(rig, owner) for _ in range(2)]
    high = [submit(rig, owner, priority="high") for _ in range(2)]

    assert pending(rig) == [*high, *normal, *low]


def test_a_job_that_comes_back_is_the_first_of_its_priority(rig: Rig) -> None:
    worker = rig.worker()
    held = [submit(rig, "a") for _ in range(2)]
    taken = [claim(rig, worker) for _ in held]
    waiting = [submit(rig, owner) for owner in ("a", "b")]
    urgent = submit(rig, "b", priority="high")

    returned = leases(rig).hand_back([(job.id, token.id) for job, token in taken], "drained")

    assert sorted(returned) == sorted(held)
    assert pending(rig)[:3] == [urgent, *held]
    assert sorted(pending(rig)[3:]) == sorted(waiting)


def test_a_job_that_comes_back_after_the_queue_was_empty_is_first_too(rig: Rig) -> None:
    worker = rig.worker()
    ids = [submit(rig, "a") for _ in range(10)]
    taken = [claim(rig, worker) for _ in ids]
    later = submit(rig, "a")

    job, execution = taken[-1]
    leases(rig).hand_back([(job.id, execution.id)], "drained")

    assert pending(rig) == [ids[-1], later]


def test_a_job_put_back_unclaimed_is_first_too(rig: Rig) -> None:
    first, second = submit(rig, "a"), submit(rig, "a")
    pop(rig, rig.worker())
    reaper(rig).reap()
    rig.redis.zadd(rig.keys.unclaimed, {first: 1})

    assert reaper(rig).reap().put_back == [first]

    assert pending(rig) == [first, second]


def test_what_stock_tools_put_into_the_queue_does_not_disturb_it(rig: Rig) -> None:
    ours = submit(rig, "a")
    rig.redis.rpush(rig.keys.pending, "not-ours")

    later = submit(rig, "a", priority="low")

    assert {ours, later} < set(pending(rig))
    assert len(pending(rig)) == 3


@hypothesis_settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.sampled_from("abc"), st.integers(1, 4)),
            st.just("claim"),
        ),
        max_size=40,
    )
)
def test_no_owner_gets_ahead_of_a_waiting_one_by_more_than_two_jobs(
    rig: Rig, events: list[tuple[str, int] | str]
) -> None:
    rig.redis.flushall()
    worker = rig.worker()
    served: dict[str, float] = {}
    waiting: dict[str, list[float]] = {owner: [] for owner in "abc"}
    dearest = cost(spec(n=4))
    for event in events:
        if isinstance(event, tuple):
            owner, n = event
            if not any(waiting.values()):
                # An empty queue forgets who got what.
                served.clear()
            if not waiting[owner]:
                # Whoever begins to wait is not owed what others got before.
                present = [served[o] for o in served if waiting[o]]
                served[owner] = max(served.get(owner, 0.0), min(present, default=0.0))
            submit(rig, owner, n=n)
            waiting[owner].append(cost(spec(n=n)))
        elif pending(rig):
            job, _ = claim(rig, worker)
            owner = rig.redis.hget(job.key, "koala_owner").decode()
            served[owner] += waiting[owner].pop(0)
        backlogged = [served[owner] for owner in waiting if waiting[owner]]
        if backlogged:
            assert max(backlogged) - min(backlogged) <= 2 * dearest
