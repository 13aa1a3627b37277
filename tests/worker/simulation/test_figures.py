"""Figures that can be worked out by hand."""

import pytest

from koala.curves import DeviceCurves, SizeCurve
from worker.batching import StepCurve
from worker.simulation.device import Device
from worker.simulation.gpu import Strategy
from worker.simulation.plan import Plan
from worker.simulation.published import PROFILES
from worker.simulation.report import Summary, summarize
from worker.simulation.simulate import simulate
from worker.simulation.workload import Clients, Poisson, Workload

SMALL = (64, 64)
FIVE_STEPS = Workload({SMALL: 1}, steps=(5, 5))
MIXED_STEPS = Workload({SMALL: 1}, steps=(4, 30), guidance_scale=(0, 7))


def device(points: dict[int, float], max_rows: int | None = None) -> Device:
    """A device that also takes 0.05 s per image decoded and 0.01 s per tick."""
    return Device("test", {SMALL: StepCurve(points)}, {SMALL: 0.05}, 0.01, max_rows)


FLAT = device({2: 0.1, 4: 0.1})


def figures(
    device: Device,
    workload: Workload,
    load: Clients | Poisson,
    strategy: Strategy = Strategy.STEP_LEVEL,
    **options: int,
) -> Summary:
    return summarize(simulate(device, workload, load, strategy, **options))


@pytest.mark.parametrize("strategy", Strategy)
def test_an_idle_request_takes_its_steps_and_its_decoding(strategy: Strategy) -> None:
    alone = figures(FLAT, FIVE_STEPS, Clients(1), strategy, requests=20)
    assert alone.mean_latency == pytest.approx(5 * (0.1 + 0.01) + 0.05)
    assert alone.images_per_minute == pytest.approx(60 / 0.6)
    assert (alone.mean_wait, alone.rows_per_step) == (pytest.approx(0), 2)
    assert alone.busy_share == pytest.approx(1)


def test_a_saturated_gpu_draws_what_its_best_batch_allows() -> None:
    # Two images of two rows share each step: 2.5 ticks an image, and its decoding.
    full = figures(FLAT, FIVE_STEPS, Clients(10), requests=1000)
    assert full.images_per_minute == pytest.approx(60 / (2.5 * 0.11 + 0.05), rel=0.003)
    assert full.rows_per_step == 4
    assert full.busy_share == pytest.approx(1)
    # Ten clients share the throughput.
    assert full.mean_latency == pytest.approx(10 * (2.5 * 0.11 + 0.05), rel=0.003)


def test_two_gpus_on_one_queue_draw_twice_as_much() -> None:
    one, two = (figures(FLAT, FIVE_STEPS, Clients(20), requests=1000, gpus=gpus) for gpus in (1, 2))
    assert two.images_per_minute == pytest.approx(2 * one.images_per_minute, rel=0.01)


def test_a_gpu_below_saturation_draws_what_is_asked_for() -> None:
    half = figures(FLAT, FIVE_STEPS, Poisson(90), requests=4000)
    assert half.images_per_minute == pytest.approx(90, rel=0.05)
    assert 0.4 < half.busy_share < 0.8


def test_an_image_without_guidance_takes_one_row() -> None:
    plain = Workload({SMALL: 1}, steps=(5, 5), guidance_scale=(1, 1))
    assert figures(FLAT, plain, Clients(1), requests=10).rows_per_step == 1


def test_an_image_larger_than_the_batch_takes_several_calls_a_step() -> None:
    narrow = device({1: 0.1, 2: 0.12}, max_rows=1)
    alone = figures(narrow, FIVE_STEPS, Clients(1), requests=10)
    assert alone.mean_latency == pytest.approx(5 * (2 * 0.1 + 0.01) + 0.05)


@pytest.mark.parametrize("name", PROFILES)
def test_an_idle_request_takes_exactly_what_was_published(name: str) -> None:
    profile = PROFILES[name]
    workload = Workload({profile.size: 1})
    idle = figures(profile.device(), workload, Clients(1), requests=1)
    assert idle.mean_latency == pytest.approx(profile.latency, abs=1e-9)


@pytest.mark.parametrize(("size", "published"), [(512, 0.19), (1024, 0.66)])
def test_a_card_has_one_curve_for_both_published_sizes(size: int, published: float) -> None:
    device = PROFILES["4090/koala-lightning-700m"].device([(size, size)])
    idle = figures(device, Workload({(size, size): 1}), Clients(1), requests=1)
    assert idle.mean_latency == pytest.approx(published, abs=1e-9)


def test_a_size_that_was_not_measured_costs_by_its_pixels() -> None:
    curves = DeviceCurves(
        name="test",
        sizes=(SizeCurve(size=SMALL, step_seconds={1: 0.1, 2: 0.2, 4: 0.4}, decode_seconds=0.05),),
    )
    wide = Workload({(128, 64): 1}, steps=(5, 5))
    idle = figures(Device.measured(curves), wide, Clients(1), requests=1)
    assert idle.mean_latency == pytest.approx(5 * 0.4 + 0.1)


def test_joining_between_steps_spares_unlike_requests_the_wait_for_a_batch() -> None:
    concave = device({1: 0.10, 2: 0.12, 4: 0.15, 8: 0.2, 16: 0.36})
    ours, batches, single = (
        figures(concave, MIXED_STEPS, Poisson(40), strategy, requests=600, seed=3)
        for strategy in Strategy
    )
    assert ours.mean_latency < batches.mean_latency < single.mean_latency
    assert ours.mean_wait < batches.mean_wait / 10


def test_a_seed_repeats_a_simulation_and_another_one_does_not() -> None:
    first, again, other = (
        figures(FLAT, MIXED_STEPS, Poisson(30), requests=200, seed=seed) for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other


def test_every_strategy_meets_the_same_requests() -> None:
    traces = [
        simulate(FLAT, MIXED_STEPS, Poisson(30), strategy, requests=50) for strategy in Strategy
    ]
    met = [[(job.shape, job.arrived) for job in trace.jobs] for trace in traces]
    assert met[0] == met[1] == met[2]


def test_more_than_can_be_drawn_is_marked() -> None:
    plan = Plan(FLAT, FIVE_STEPS, (Poisson(100), Poisson(400)), (Strategy.STEP_LEVEL,))
    assert [point.is_overloaded for point in plan.run()] == [False, True]
