"""Step-time curves and the batch that follows from one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.batching import StepCurve

# What two CPU cores gave for the demo model, in seconds.
DEMO = {1: 0.0114, 8: 0.033, 16: 0.057, 32: 0.098, 64: 0.196}


def test_between_points_it_is_straight_and_beyond_them_as_steep_as_before() -> None:
    curve = StepCurve({4: 0.4, 2: 0.3, 8: 0.6})
    assert list(curve.points) == [2, 4, 8]
    seconds = [curve.seconds(rows) for rows in (1, 2, 3, 4, 6, 8, 10)]
    assert seconds == pytest.approx([0.3, 0.3, 0.35, 0.4, 0.5, 0.6, 0.7])
    assert curve.rate(4) == pytest.approx(10)


def test_one_point_makes_work_proportional_to_rows() -> None:
    assert StepCurve({2: 0.5}).seconds(8) == pytest.approx(2.0)


def test_a_measured_stretch_that_falls_does_not_fall_on_for_ever() -> None:
    assert StepCurve({1: 0.3, 2: 0.2}).seconds(50) == pytest.approx(0.2)


@pytest.mark.parametrize("points", [{}, {0: 0.1}, {1: 0.0}, {1: float("nan")}])
def test_what_is_no_measurement_is_refused(points: dict[int, float]) -> None:
    with pytest.raises(ValueError):
        StepCurve(points)


def test_the_cap_is_the_smallest_batch_with_nearly_the_best_throughput() -> None:
    assert StepCurve(DEMO).cap() == 32
    # A card that one row keeps busy gains nothing by more of them.
    busy = StepCurve({1: 0.1, 2: 0.198, 4: 0.393})
    assert busy.cap() == 1
    assert busy.cap(least=2) == 2


def test_a_target_time_makes_the_batch_smaller() -> None:
    assert StepCurve(DEMO).cap(target_seconds=0.06) == 16
    assert StepCurve(DEMO).cap(target_seconds=0.034) == 8
    # Nothing is as quick as that: then the smallest.
    assert StepCurve(DEMO).cap(target_seconds=0.001) == 1
    assert StepCurve(DEMO).cap(least=2, target_seconds=0.001) == 8


@given(
    st.dictionaries(st.integers(1, 128), st.floats(1e-4, 100), min_size=1),
    st.integers(1, 4),
)
def test_no_measured_batch_is_much_better_than_the_cap(
    points: dict[int, float], least: int
) -> None:
    curve = StepCurve(points)
    cap = curve.cap(least=least)
    assert cap in points
    rivals = [rows for rows in points if rows >= least] or [cap]
    assert all(curve.rate(cap) >= 0.95 * curve.rate(rows) for rows in rivals)
    assert all(
        curve.rate(rows) < 0.95 * max(map(curve.rate, rivals)) for rows in rivals if rows < cap
    )


def test_four_times_the_pixels_make_a_row_cost_what_four_rows_did() -> None:
    large = StepCurve(DEMO).scaled(4)
    assert large.seconds(8) == pytest.approx(DEMO[32])
    assert large.cap() == 8
    assert StepCurve(DEMO).scaled(0.5).seconds(64) == pytest.approx(DEMO[32])


def test_a_curve_is_saturated_once_more_rows_hardly_pay() -> None:
    assert not StepCurve({1: 0.1, 2: 0.11}).is_saturated
    assert not StepCurve({8: 0.033, 16: 0.057, 32: 0.098}).is_saturated
    assert StepCurve({16: 0.05, 32: 0.099, 64: 0.197}).is_saturated
