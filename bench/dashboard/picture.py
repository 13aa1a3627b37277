"""The dashboard's panels drawn with what Prometheus has. Needs the ``plot`` extra."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import matplotlib
import numpy as np

from bench.dashboard.panels import Panel, panels
from bench.dashboard.prometheus import Prometheus, Series

matplotlib.use("Agg")

from matplotlib import pyplot
from matplotlib.gridspec import GridSpec
from matplotlib.ticker import FuncFormatter

_COLUMNS: Final = 24
_INCHES: Final = (0.75, 0.36)
_POINTS: Final = 120
# Legends longer than this hide the picture.
_MOST_LABELS: Final = 12
_MIB: Final = 2**20


def draw(prometheus: Prometheus, start: float, end: float, rate_interval: str, path: Path) -> None:
    """Write a picture of all panels between two Unix times."""
    found = list(panels(rate_interval))
    rows = max(panel.y + panel.height for panel in found)
    figure = pyplot.figure(figsize=(_COLUMNS * _INCHES[0], rows * _INCHES[1]))
    grid = GridSpec(rows, _COLUMNS, figure=figure, hspace=6, wspace=4)
    for panel in found:
        place = grid[panel.y : panel.y + panel.height, panel.x : panel.x + panel.width]
        axes = figure.add_subplot(place)
        axes.set_title(panel.title, fontsize=9, loc="left")
        _draw_panel(axes, panel, prometheus, start, end)
    figure.text(0.5, 0.09, f"seconds; rates over {rate_interval}", ha="center", fontsize=8)
    figure.savefig(path, dpi=70, bbox_inches="tight")
    pyplot.close(figure)


def _draw_panel(axes: Any, panel: Panel, prometheus: Prometheus, start: float, end: float) -> None:
    step = (end - start) / _POINTS
    found = [
        (_label(query.legend, series.labels), series)
        for query in panel.queries
        for series in prometheus.query_range(query.expression, start, end, step)
    ]
    numbers = [value for _, series in found for _, value in series.points]
    if all(math.isnan(value) for value in numbers):
        text = "needs a GPU" if any(query.needs_gpu for query in panel.queries) else "no data"
        axes.text(0.5, 0.5, text, ha="center", va="center", color="0.5")
        axes.set_axis_off()
    elif panel.kind == "stat":
        last = next(value for value in reversed(numbers) if not math.isnan(value))
        axes.text(0.5, 0.45, _number(last, panel.unit), ha="center", va="center", fontsize=18)
        axes.set_axis_off()
    elif panel.kind == "heatmap":
        _heat_map(axes, [series for _, series in found], start)
    else:
        _lines(axes, panel, found, start)


def _lines(axes: Any, panel: Panel, found: Sequence[tuple[str, Series]], start: float) -> None:
    scale = _MIB if panel.unit == "bytes" else 1
    for label, series in found:
        points = list(_with_gaps(series.points))
        times = [at - start for at, _ in points]
        axes.plot(times, [value / scale for _, value in points], linewidth=1, label=label)
    tick = FuncFormatter(lambda value, _: _number(value * scale, panel.unit))
    axes.yaxis.set_major_formatter(tick)
    axes.set_ylim(bottom=0)
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.3)
    if len(found) <= _MOST_LABELS:
        size = 6 if len(found) < 6 else 5
        axes.legend(fontsize=size, loc="best", framealpha=0.6, labelspacing=0.2)


def _with_gaps(points: Sequence[tuple[float, float]]) -> Iterator[tuple[float, float]]:
    """The points, with one that is not a number wherever there was nothing to scrape."""
    step = min((b - a for (a, _), (b, _) in pairwise(points)), default=0.0)
    yield from points[:1]
    for (before, _), (at, value) in pairwise(points):
        if at - before > 1.5 * step:
            yield before + step, math.nan
        yield at, value


def _heat_map(axes: Any, found: Sequence[Series], start: float) -> None:
    """Jobs by time and latency; Prometheus's buckets each hold what the smaller ones hold too."""
    buckets = sorted(found, key=lambda series: float(series.labels["le"]))
    times = sorted({at for series in buckets for at, _ in series.points})
    counts = np.zeros((len(buckets), len(times)))
    for i, series in enumerate(buckets):
        for at, value in series.points:
            counts[i, times.index(at)] = value
    alone = np.diff(counts, axis=0, prepend=0).clip(min=0)
    axes.imshow(
        np.sqrt(alone),
        origin="lower",
        aspect="auto",
        cmap="Oranges",
        interpolation="nearest",
        extent=(times[0] - start, times[-1] - start, 0, len(buckets)),
    )
    used = np.flatnonzero(alone.sum(axis=1))
    axes.set_yticks(range(1, len(buckets) + 1))
    axes.set_yticklabels([f"{float(series.labels['le']):g} s" for series in buckets])
    axes.set_ylim(max(0, used.min() - 1), used.max() + 1)
    axes.tick_params(labelsize=7)


def _label(template: str, labels: Mapping[str, str]) -> str:
    return re.sub(r"\{\{(\w+)\}\}", lambda match: labels.get(match[1], ""), template)


def _number(value: float, unit: str) -> str:
    match unit:
        case "percentunit":
            return f"{100 * value:.3g} %"
        case "s":
            return f"{value:.3g} s" if value >= 1 or not value else f"{1000 * value:.3g} ms"
        case "bytes":
            return f"{value / _MIB:.4g} MiB"
        case "ops" | "reqps":
            return f"{value:.3g}/s"
        case _:
            return f"{value:.3g}"
