"""The figures of a plan as a picture."""

from pathlib import Path
from typing import Final

from worker.simulation.gpu import Strategy
from worker.simulation.plan import Plan, Point
from worker.simulation.workload import Clients

FORMATS: Final = (".svg", ".png", ".pdf")

_COLOURS: Final = {
    Strategy.STEP_LEVEL: "#2a78d6",
    Strategy.WHOLE_BATCH: "#e07b39",
    Strategy.ONE_BY_ONE: "#7a7a7a",
}
_MARKERS: Final = {
    Strategy.STEP_LEVEL: "o",
    Strategy.WHOLE_BATCH: "s",
    Strategy.ONE_BY_ONE: "^",
}


class PlotError(Exception):
    """No plot can be written; the message says why, in one line."""


def check(path: Path) -> None:
    """See before a long simulation that its plot can be written.

    Raises:
        PlotError: The format is unknown, the folder is missing, or matplotlib is.
    """
    if path.suffix.lower() not in FORMATS:
        raise PlotError(f"{path}: the name must end in one of {', '.join(FORMATS)}.")
    if not path.absolute().parent.is_dir():
        raise PlotError(f"{path}: there is no such folder.")
    try:
        import matplotlib.figure  # noqa: F401
    except ModuleNotFoundError as error:
        message = f"A plot needs {error.name}: run `pip install 'koala-serve[plot]'`."
        raise PlotError(message) from None


def write(plan: Plan, points: list[Point], path: Path) -> None:
    """Write throughput and latency over load.

    Raises:
        PlotError: The file cannot be written.
    """
    import matplotlib
    from matplotlib.figure import Figure

    # The same figures make the same file.
    with matplotlib.rc_context({"svg.hashsalt": "koala", "axes.grid": True, "grid.alpha": 0.3}):
        figure = Figure(figsize=(10, 4), layout="constrained")
        throughput, latency = figure.subplots(1, 2)
        for strategy in plan.strategies:
            mine = [point for point in points if point.strategy is strategy]
            loads = [_load(point) for point in mine]
            style = {"color": _COLOURS[strategy], "marker": _MARKERS[strategy], "label": strategy}
            figures = [point.summary for point in mine]
            throughput.plot(loads, [f.images_per_minute for f in figures], **style)
            latency.plot(loads, [f.p95_latency for f in figures], **style)
            style = {"color": _COLOURS[strategy], "linestyle": ":"}
            latency.plot(loads, [f.p50_latency for f in figures], **style)
        is_closed = isinstance(plan.loads[0], Clients)
        for axes in (throughput, latency):
            axes.set_xlabel("clients" if is_closed else "requests per minute")
            axes.set_ylim(bottom=0)
        throughput.set_title("images per minute", fontsize=10)
        latency.set_title("latency in seconds: p95, median dotted", fontsize=10)
        throughput.legend()
        gpus = "" if plan.gpus == 1 else f"{plan.gpus} times "
        figure.suptitle(f"{gpus}{plan.device.name} (simulated)", fontsize=11)
        metadata = {"Date": None} if path.suffix.lower() == ".svg" else None
        try:
            figure.savefig(path, dpi=144, metadata=metadata)
        except OSError as error:
            raise PlotError(f"{path}: {error.strerror}") from None


def _load(point: Point) -> float:
    load = point.load
    return load.count if isinstance(load, Clients) else load.per_minute
