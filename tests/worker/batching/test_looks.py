"""When a curve is measured again."""

import pytest

from worker.batching import Looks


class Clock:
    """Time that passes when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("worker.batching.looks.monotonic", lambda: clock.now)
    return clock


def test_a_curve_is_looked_at_after_a_minute_and_then_ever_more_rarely(clock: Clock) -> None:
    looks: Looks[str] = Looks()
    looks.measured("a")
    waits = []
    for _ in range(8):
        began = clock.now
        while not looks.due():
            clock.now += 1
        waits.append(clock.now - began)
        looks.looked("a", changed=False)
    assert waits == [60, 120, 240, 480, 960, 1920, 3600, 3600]


def test_a_look_that_changed_something_is_followed_by_another_soon(clock: Clock) -> None:
    looks: Looks[str] = Looks()
    looks.measured("a")
    for _ in range(5):
        looks.looked("a", changed=False)
    looks.looked("a", changed=True)
    clock.now += 60
    assert looks.due() == ["a"]


def test_steps_much_quicker_than_measured_make_a_look_due_at_once(clock: Clock) -> None:
    looks: Looks[str] = Looks()
    looks.measured("a")
    looks.measured("b")
    clock.now += 5
    for _ in range(16):
        looks.note("a", 0.03, expected=0.5)
        looks.note("b", 0.45, expected=0.5)
    assert looks.due() == ["a"]
    looks.looked("a", changed=False)
    assert looks.due() == []


def test_a_few_quick_steps_among_many_are_no_contradiction(clock: Clock) -> None:
    looks: Looks[str] = Looks()
    looks.measured("a")
    clock.now += 5
    for i in range(100):
        looks.note("a", 0.1 if i % 4 == 0 else 0.5, expected=0.5)
    assert looks.due() == []
