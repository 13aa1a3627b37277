"""What the benchmark asks for: seeded, varied, and of nearly constant cost."""

from itertools import islice, pairwise
from statistics import mean, pstdev

import pytest

from bench.workloads import Request, Workload, arrivals, requests


def first(workload: Workload, seed: int, count: int) -> list[Request]:
    return list(islice(requests(workload, seed), count))


@pytest.mark.parametrize("workload", list(Workload))
def test_a_seed_gives_every_contender_the_same_requests(workload: Workload) -> None:
    assert first(workload, 1, 100) == first(workload, 1, 100)
    assert first(workload, 1, 100) != first(workload, 2, 100)


def test_uniform_is_ten_steps_at_guidance_three_and_a_half_of_varied_prompts() -> None:
    asked = first(Workload.UNIFORM, 0, 200)

    assert {(r.num_inference_steps, r.guidance_scale, r.unet_rows) for r in asked} == {
        (10, 3.5, 20)
    }
    assert len({r.prompt for r in asked}) > 150
    assert len({r.seed for r in asked}) == 200


def test_mixed_spans_all_steps_and_guidances() -> None:
    asked = first(Workload.MIXED, 0, 27 * 15)

    assert {r.num_inference_steps for r in asked} == set(range(4, 31))
    assert (min(r.guidance_scale for r in asked), max(r.guidance_scale for r in asked)) == (0, 7)
    assert {r.is_guided for r in asked} == {True, False}


def test_any_stretch_of_mixed_costs_nearly_the_same() -> None:
    asked = first(Workload.MIXED, 0, 540)
    costs = [mean(r.unet_rows for r in asked[i : i + 54]) for i in range(0, 540, 54)]

    assert max(costs) / min(costs) < 1.1


def test_rows_count_guidance_twice_and_only_above_one() -> None:
    assert Request("a koala", 0, 7, 1.0).unet_rows == 7
    assert Request("a koala", 0, 7, 1.5).unet_rows == 14


def test_arrivals_are_the_same_for_a_seed_and_ascend_within_their_time() -> None:
    times = arrivals(9.0, 20.0, seed=4)

    assert times == arrivals(9.0, 20.0, seed=4)
    assert times != arrivals(9.0, 20.0, seed=5)
    assert times == sorted(times)
    assert times[0] > 0 and times[-1] < 20


def test_arrivals_come_at_their_rate_and_as_irregularly_as_poisson_does() -> None:
    times = arrivals(10.0, 1000.0, seed=0)
    gaps = [b - a for a, b in pairwise(times)]

    assert len(times) / 1000 == pytest.approx(10, rel=0.03)
    # The deviation of an exponential distribution is its mean.
    assert pstdev(gaps) == pytest.approx(mean(gaps), rel=0.05)


def test_a_rate_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="rate must be positive"):
        arrivals(0, 1, seed=0)
