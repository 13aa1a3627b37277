"""Percentiles, and rates within a window."""

import pytest

from bench.figures import Answer, Rate, percentile, rate_within
from bench.workloads import Request


def image(ended: float, steps: int = 10) -> Answer:
    return Answer(Request("a koala", 0, steps, 3.5), due=0.0, ended=ended)


@pytest.mark.parametrize(
    ("percent", "value"), [(0, 1), (5, 1), (50, 10), (95, 19), (96, 20), (100, 20)]
)
def test_a_percentile_is_the_value_of_its_rank(percent: float, value: float) -> None:
    assert percentile(list(range(20, 0, -1)), percent) == value


def test_there_is_no_percentile_of_nothing() -> None:
    with pytest.raises(ValueError):
        percentile([], 50)


def test_a_rate_spans_from_the_last_image_before_the_window_to_the_last_one_in_it() -> None:
    # A burst of four every two seconds: two images per second, wherever the window lies.
    bursts = [image(t) for t in (2, 4, 6, 8, 10) for _ in range(4)]

    for start, end in ((3, 9), (3.9, 8.1), (2.1, 7.9)):
        rate = rate_within(bursts, start, end)
        assert rate.images_per_second == pytest.approx(2)
        assert rate.unet_rows_per_second == pytest.approx(40)


def test_a_rate_leaves_out_errors_and_what_never_ended() -> None:
    failed = Answer(Request("a koala", 0, 10, 3.5), 0.0, ended=1.5, error="status 500")
    unfinished = Answer(Request("a koala", 0, 10, 3.5), 0.0)

    rate = rate_within([image(1), failed, unfinished, image(2, steps=3)], 1, 3)

    assert rate == Rate(seconds=1, images=1, unet_rows=6)


def test_a_window_without_an_image_is_a_rate_of_nothing() -> None:
    assert rate_within([image(1)], 2, 5) == Rate(3, 0, 0)
