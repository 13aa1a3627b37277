"""The aims of the project, and whether a run meets them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from bench.contenders import Contender
from bench.results import IdleRun, Results, Run
from bench.summary import at_saturation, middle, poisson, raw_rows_per_second
from bench.workloads import Workload


@dataclass(frozen=True, slots=True)
class Aim:
    """An aim and the figure that judges it.

    Args:
        text: What is aimed at.
        value: The figure; ``None`` where the run did not measure what it takes.
        goal: The figure aimed at.
        at_least: Whether more is better.
        unit: What the figure is in, written behind it.
    """

    text: str
    value: float | None
    goal: float
    at_least: bool
    unit: str = ""

    @property
    def is_met(self) -> bool | None:
        """Whether it is met; ``None`` without a figure."""
        if self.value is None:
            return None
        return self.value >= self.goal if self.at_least else self.value <= self.goal


def judge(results: Results) -> list[Aim]:
    """All aims. Ratios are medians of the ratios of each round.

    Throughputs are compared in U-Net rows per second: images weighted by their cost, so that it
    does not matter which requests of a mix a contender came to in its window.
    """
    return [
        Aim(
            "`uniform` at saturation, of the raw limit",
            _of_raw(results, Workload.UNIFORM),
            0.90,
            at_least=True,
        ),
        Aim(
            "`mixed` at saturation, of the raw limit",
            _of_raw(results, Workload.MIXED),
            0.85,
            at_least=True,
        ),
        Aim(
            "`mixed` at saturation, times LitServe",
            _times(results, Contender.LITSERVE, Workload.MIXED),
            2.0,
            at_least=True,
        ),
        *(
            Aim(
                f"p95 of `mixed` Poisson arrivals, of that of {contender.label}",
                _of_p95(results, contender, Workload.MIXED),
                0.5,
                at_least=False,
            )
            for contender in (Contender.WHOLE, Contender.LITSERVE)
        ),
        Aim(
            "a single request when idle, slower than FastAPI with a lock",
            _slower_when_idle_ms(results, Contender.LOCK),
            10.0,
            at_least=False,
            unit=" ms",
        ),
    ]


def _of_raw(results: Results, workload: Workload) -> float | None:
    ours = _by_round(at_saturation(results, Contender.OURS, workload), _work)
    return _ratio(ours, raw_rows_per_second(results, workload))


def _times(results: Results, contender: Contender, workload: Workload) -> float | None:
    ours, theirs = (
        _by_round(at_saturation(results, each, workload), _work)
        for each in (Contender.OURS, contender)
    )
    return _ratio(ours, theirs)


def _of_p95(results: Results, contender: Contender, workload: Workload) -> float | None:
    ours, theirs = (
        _by_round(poisson(results, each, workload), lambda run: run.p95)
        for each in (Contender.OURS, contender)
    )
    return _ratio(ours, theirs)


def _slower_when_idle_ms(results: Results, contender: Contender) -> float | None:
    ours, theirs = (
        middle(seconds for run in _idle(results, each) for seconds in run.latencies)
        for each in (Contender.OURS, contender)
    )
    return None if ours is None or theirs is None else 1000 * (ours - theirs)


def _idle(results: Results, contender: Contender) -> list[IdleRun]:
    return [run for run in results.idle if run.contender is contender]


def _by_round(runs: Sequence[Run], figure: Callable[[Run], float | None]) -> dict[int, float]:
    figures = {run.round: figure(run) for run in runs}
    return {number: value for number, value in figures.items() if value is not None}


def _work(run: Run) -> float:
    return run.unet_rows_per_second


def _ratio(ours: Mapping[int, float], theirs: Mapping[int, float]) -> float | None:
    rounds = ours.keys() & theirs.keys()
    return middle(ours[number] / theirs[number] for number in rounds if theirs[number])
