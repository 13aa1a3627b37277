"""The soak's verdict: what counts as growth."""

import random

import pytest

from bench.soak.samples import Sample
from bench.soak.verdict import slope, trends


def samples(per_hour: float, noise: float = 0.0, name: str = "gateway memory") -> list[Sample]:
    draw = random.Random(0)
    return [
        Sample(
            seconds=3.0 * i,
            values={name: 80 + per_hour * 3.0 * i / 3600 + draw.uniform(-noise, noise)},
        )
        for i in range(200)
    ]


def test_a_leak_is_growth_and_noise_is_not() -> None:
    [leaking] = trends(samples(per_hour=40, noise=0.5), warm_up=0)
    [steady] = trends(samples(per_hour=0, noise=0.5), warm_up=0)
    assert not leaking.is_flat
    assert leaking.per_hour == pytest.approx(40, rel=0.2)
    assert steady.is_flat


def test_what_shrinks_is_flat() -> None:
    [shrinking] = trends(samples(per_hour=-100), warm_up=0)
    assert shrinking.is_flat


def test_outliers_make_no_slope() -> None:
    values = [1.0] * 50
    values[10] = values[40] = 1000.0
    assert slope([float(i) for i in range(50)], values) == 0


def test_the_warm_up_is_not_judged() -> None:
    grown = [Sample(seconds=i, values={"worker memory": min(i, 100.0)}) for i in range(300)]
    [judged] = trends(grown, warm_up=100)
    assert (judged.per_hour, judged.lowest) == (0, 100)


def test_numbers_of_keys_may_follow_the_throughput() -> None:
    [busy] = trends(samples(per_hour=30, name="keys: jobs"), warm_up=0)
    assert busy.is_flat


def test_a_quantity_without_a_limit_is_an_error() -> None:
    with pytest.raises(ValueError, match="surprise"):
        trends(samples(per_hour=0, name="surprise"), warm_up=0)
