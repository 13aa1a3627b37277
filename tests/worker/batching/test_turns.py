"""Deficit round robin: who gets how much of the device."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.batching import DeficitRoundRobin

COSTS = st.dictionaries(
    st.integers(0, 5), st.floats(0.001, 100, allow_nan=False), min_size=2, max_size=6
)


def test_nobody_has_a_turn_where_nobody_is() -> None:
    turns: DeficitRoundRobin[str] = DeficitRoundRobin()
    assert turns.choose(lambda group: 1.0) is None
    turns.join("a")
    turns.leave("a")
    assert turns.choose(lambda group: 1.0) is None
    with pytest.raises(KeyError):
        turns.leave("a")


def test_equal_costs_take_turns() -> None:
    turns: DeficitRoundRobin[str] = DeficitRoundRobin()
    for group in "abc":
        turns.join(group)
    assert "".join(str(turns.choose(lambda group: 0.5)) for _ in range(7)) == "abcabca"


def test_a_group_whose_steps_cost_a_tenth_takes_ten_for_each_of_the_other() -> None:
    turns: DeficitRoundRobin[str] = DeficitRoundRobin()
    turns.join("large")
    turns.join("small")
    cost = {"large": 1.0, "small": 0.1}
    taken = Counter(turns.choose(cost.__getitem__) for _ in range(110))
    assert taken == {"large": 10, "small": 100}


@given(COSTS, st.integers(20, 200))
def test_groups_that_stay_have_had_the_same_time_up_to_two_quanta(
    costs: dict[int, float], steps: int
) -> None:
    turns: DeficitRoundRobin[int] = DeficitRoundRobin()
    had = dict.fromkeys(costs, 0.0)
    for group in costs:
        turns.join(group)
    for _ in range(steps):
        group = turns.choose(costs.__getitem__)
        assert group is not None
        had[group] += costs[group]
        assert max(had.values()) - min(had.values()) < 2 * max(costs.values()) * 1.000001


@given(COSTS, st.lists(st.tuples(st.sampled_from(["join", "leave"]), st.integers(0, 5))))
def test_no_group_waits_longer_than_a_round_whoever_comes_and_goes(
    costs: dict[int, float], changes: list[tuple[str, int]]
) -> None:
    turns: DeficitRoundRobin[int] = DeficitRoundRobin()
    here: dict[int, float] = {}
    pending = iter(changes)
    for _ in range(100):
        kind, group = next(pending, ("none", -1))
        if kind == "join" and group in costs and group not in here:
            turns.join(group)
            here[group] = 0.0
        elif kind == "leave" and group in here:
            turns.leave(group)
            del here[group]
        chosen = turns.choose(costs.__getitem__)
        assert (chosen is None) == (not here)
        if chosen is None:
            continue
        for waiting in here:
            here[waiting] += costs[chosen]
        here[chosen] = 0.0
        # A turn lasts at most a quantum beyond what was saved up, which is less than a quantum.
        longest = 2 * max(costs.values()) * len(costs)
        assert max(here.values()) <= longest
