"""Limits after memory ran out: half at once, back slowly."""

from worker.batching import Pressure


def recover(pressure: Pressure[str], calls: int) -> list[int | None]:
    """The limits seen while ``calls`` calls go well."""
    seen = []
    for _ in range(calls):
        pressure.went_well("a")
        seen.append(pressure.limit("a"))
    return seen


def test_there_is_no_limit_before_memory_ran_out() -> None:
    pressure: Pressure[str] = Pressure()
    pressure.went_well("a")
    assert pressure.limit("a") is None


def test_each_time_the_limit_is_half_of_what_was_tried_and_at_least_one() -> None:
    pressure: Pressure[str] = Pressure()
    assert [pressure.ran_out("a", tried) for tried in (16, 8, 3, 1)] == [8, 4, 1, 1]
    assert pressure.limit("a") == 1
    assert pressure.limit("b") is None


def test_it_recovers_by_a_quarter_after_many_clean_calls_up_to_what_failed() -> None:
    pressure: Pressure[str] = Pressure()
    pressure.ran_out("a", 16)
    seen = recover(pressure, 64 * 4)
    assert seen[62:65] == [8, 10, 10]
    assert seen[127] == 12
    assert seen[191] == 15
    # The next quarter reaches what once failed: from there on all may be tried again.
    assert seen[255] is None


def test_a_relapse_makes_it_recover_half_as_fast() -> None:
    pressure: Pressure[str] = Pressure()
    pressure.ran_out("a", 16)
    recover(pressure, 64)
    assert pressure.ran_out("a", 10) == 5
    assert recover(pressure, 127) == [5] * 127
    assert recover(pressure, 1) == [6]
