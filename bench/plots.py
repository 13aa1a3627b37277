"""Plots of a run. Needs the ``bench`` extra."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import matplotlib

from bench.contenders import SERVERS, Contender
from bench.results import Results
from bench.summary import closed, levels, middle, poisson
from bench.workloads import Workload

matplotlib.use("Agg")

from matplotlib import pyplot

_COLOURS: Final = {
    Contender.RAW: "0.4",
    Contender.OURS: "tab:blue",
    Contender.WHOLE: "tab:green",
    Contender.LITSERVE: "tab:orange",
    Contender.LOCK: "tab:red",
}


def throughput(results: Results, path: Path) -> None:
    """Write images per second over clients, a panel per workload."""
    figure, panels = pyplot.subplots(1, len(Workload), figsize=(10, 4), squeeze=False)
    for panel, workload in zip(panels[0], Workload, strict=True):
        raw = middle(run.images_per_second for run in results.raw if run.workload is workload)
        if raw is not None:
            colour = _COLOURS[Contender.RAW]
            panel.axhline(raw, color=colour, linestyle="--", label=Contender.RAW.label)
        for contender in SERVERS:
            points = {
                clients: middle(
                    run.images_per_second for run in closed(results, contender, workload, clients)
                )
                for clients in levels(results)
            }
            there = {clients: value for clients, value in points.items() if value is not None}
            if there:
                panel.plot(
                    list(there),
                    list(there.values()),
                    marker="o",
                    color=_COLOURS[contender],
                    label=contender.label,
                )
        panel.set(title=workload.value, xlabel="clients", xticks=levels(results), ylim=(0, None))
    panels[0][0].set_ylabel("images per second")
    _save(figure, panels[0], path)


def latency(results: Results, path: Path) -> None:
    """Write the share of requests answered within a time under Poisson arrivals, all rounds.

    Curves of contenders that left requests unfinished end below 1.
    """
    figure, panels = pyplot.subplots(1, len(Workload), figsize=(10, 4), squeeze=False)
    for panel, workload in zip(panels[0], Workload, strict=True):
        for contender in SERVERS:
            runs = poisson(results, contender, workload)
            seconds = sorted(value for run in runs for value in run.latencies)
            asked = len(seconds) + sum(len(run.unfinished) for run in runs)
            if seconds:
                shares = [(i + 1) / asked for i in range(len(seconds))]
                panel.step(
                    seconds,
                    shares,
                    where="post",
                    color=_COLOURS[contender],
                    label=contender.label,
                )
        panel.axhline(0.95, color="0.8", linewidth=0.8)
        panel.set(title=workload.value, xlabel="latency in seconds", xlim=(0, None), ylim=(0, 1))
    panels[0][0].set_ylabel("share of requests")
    _save(figure, panels[0], path)


def _save(figure: pyplot.Figure, panels: Sequence[pyplot.Axes], path: Path) -> None:
    for panel in panels:
        if panel.get_legend_handles_labels()[0]:
            panel.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
