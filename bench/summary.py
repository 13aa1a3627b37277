"""Medians over the rounds, and what a contender does at its best."""

from collections.abc import Iterable, Sequence
from statistics import median

from bench.contenders import Contender
from bench.results import Results, Run
from bench.workloads import Workload


def closed(results: Results, contender: Contender, workload: Workload, clients: int) -> list[Run]:
    """The runs of one level of a closed loop, by round."""
    return [
        run
        for run in results.runs
        if (run.contender, run.workload, run.clients) == (contender, workload, clients)
    ]


def poisson(results: Results, contender: Contender, workload: Workload) -> list[Run]:
    """The runs with Poisson arrivals, by round."""
    return [
        run
        for run in results.runs
        if (run.contender, run.workload, run.load) == (contender, workload, "poisson")
    ]


def levels(results: Results) -> list[int]:
    """The numbers of clients there are, ascending."""
    return sorted({run.clients for run in results.runs if run.clients is not None})


def middle(values: Iterable[float | None]) -> float | None:
    """The median of what is there; ``None`` of nothing."""
    there = [value for value in values if value is not None]
    return median(there) if there else None


def at_saturation(results: Results, contender: Contender, workload: Workload) -> list[Run]:
    """The runs of the number of clients with which the contender does most, by round."""
    runs = [closed(results, contender, workload, clients) for clients in levels(results)]
    return max(runs, key=_work, default=[])


def raw_rows_per_second(results: Results, workload: Workload) -> dict[int, float]:
    """U-Net rows per second of the raw loop, by round."""
    return {run.round: run.unet_rows_per_second for run in results.raw if run.workload is workload}


def _work(runs: Sequence[Run]) -> float:
    return middle(run.unet_rows_per_second for run in runs) or 0.0
