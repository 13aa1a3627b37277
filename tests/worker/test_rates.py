"""How a worker measures its own pace."""

import pytest

from worker.rates import Rates

SMALL, LARGE = (64, 64), (128, 128)


def test_the_loop_under_load_is_compared_with_the_measured_calls() -> None:
    rates = Rates()
    assert rates.slowness() == rates.slowness(SMALL) == 1
    for _ in range(400):
        rates.lap(SMALL, 0.2, expected=0.1)
    assert rates.slowness(SMALL) == pytest.approx(2, rel=0.1)
    for _ in range(400):
        rates.lap(SMALL, 0.12, expected=0.1)
    assert rates.slowness(SMALL) == pytest.approx(1.2, rel=0.1)


def test_a_size_that_was_measured_badly_is_told_from_the_others() -> None:
    rates = Rates()
    for _ in range(400):
        rates.lap(SMALL, 0.2, expected=0.1)
        rates.lap(LARGE, 0.1, expected=0.1)
        rates.lap(None, 0.01, expected=0.01)
    assert rates.slowness(SMALL) == pytest.approx(2, rel=0.1)
    assert rates.slowness(LARGE) == pytest.approx(1, rel=0.1)
    # Of one that was not there lately the others tell.
    assert rates.slowness((96, 96)) == rates.slowness() == pytest.approx(1.5, rel=0.1)


def test_what_happens_once_is_not_taken_for_load() -> None:
    rates = Rates()
    for _ in range(100):
        rates.lap(SMALL, 0.1, expected=0.1)
    rates.lap(SMALL, 60.0, expected=0.01)
    assert rates.slowness(SMALL) < 1.1


def test_the_images_of_the_last_minute_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = {"now": 1000.0}
    monkeypatch.setattr("worker.rates.time.monotonic", lambda: clock["now"])
    rates = Rates()
    for moment in (1000.0, 1030.0, 1050.0):
        clock["now"] = moment
        rates.image()
    assert (rates.images_last_minute, rates.images_total) == (3, 3)
    clock["now"] = 1061.0
    assert (rates.images_last_minute, rates.images_total) == (2, 3)


def test_what_storing_takes_is_an_average_that_forgets() -> None:
    rates = Rates()
    assert rates.store_seconds == 0
    rates.stored(1.0)
    assert rates.store_seconds == pytest.approx(1.0)
    rates.stored(2.0)
    assert rates.store_seconds == pytest.approx(1.1)
