"""Results as tables: rows of text, for the terminal and for Markdown."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from bench.aims import Aim, judge
from bench.contenders import SERVERS, Contender
from bench.results import Results, Run
from bench.summary import closed, levels, middle, poisson
from bench.workloads import Workload


@dataclass(frozen=True, slots=True)
class Table:
    """A table; its first column is text, the others are figures."""

    title: str
    header: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]

    def markdown(self) -> str:
        """The table in Markdown, without its title."""
        rule = ["---", *["---:"] * (len(self.header) - 1)]
        return "\n".join("| " + " | ".join(row) + " |" for row in (self.header, rule, *self.rows))


def all_tables(results: Results) -> list[Table]:
    """Aims, closed loops, Poisson arrivals, single requests, the raw limit's curve."""
    tables = [_aims(judge(results))]
    for workload in Workload:
        tables += [_closed(results, workload), _poisson(results, workload)]
    tables += [_idle(results), _curve(results)]
    return [table for table in tables if table.rows]


def _aims(aims: Sequence[Aim]) -> Table:
    words = {True: "met", False: "**missed**", None: "not measured"}
    rows = [
        (
            aim.text,
            f"{'at least' if aim.at_least else 'at most'} {aim.goal:g}{aim.unit}",
            "" if aim.value is None else f"{aim.value:.2f}{aim.unit}",
            words[aim.is_met],
        )
        for aim in aims
    ]
    return Table("Aims", ("aim", "goal", "measured", ""), rows)


_LOAD_HEADER = ("images/s", "p50 s", "p95 s", "wait p50 s", "wait p95 s", "errors")


def _closed(results: Results, workload: Workload) -> Table:
    rows = []
    raw = [run.images_per_second for run in results.raw if run.workload is workload]
    if raw:
        rows.append((Contender.RAW.label, "", _text(middle(raw)), *[""] * 5))
    for contender in SERVERS:
        for clients in levels(results):
            runs = closed(results, contender, workload, clients)
            if runs:
                rows.append((contender.label, str(clients), *_load_cells(runs)))
    header = ("contender", "clients", *_LOAD_HEADER)
    return Table(f"`{workload}`, closed loop", header, rows)


def _poisson(results: Results, workload: Workload) -> Table:
    rows = []
    rate = middle(run.rate for run in results.runs if run.workload is workload)
    for contender in SERVERS:
        runs = poisson(results, contender, workload)
        if runs:
            unfinished = sum(len(run.unfinished) for run in runs)
            asked = sum(run.images + len(run.unfinished) + _errors(run) for run in runs)
            cells = _load_cells(runs)
            rows.append((contender.label, *cells, f"{unfinished} of {asked}"))
    title = f"`{workload}`, Poisson arrivals, {_text(rate)} per second"
    return Table(title, ("contender", *_LOAD_HEADER, "unfinished"), rows)


def _load_cells(runs: Sequence[Run]) -> tuple[str, ...]:
    return (
        _text(middle(run.images_per_second for run in runs)),
        *(_text(middle(figure(run) for run in runs)) for figure in _FIGURES),
        str(sum(map(_errors, runs))),
    )


_FIGURES: tuple[Callable[[Run], float | None], ...] = (
    lambda run: run.p50,
    lambda run: run.p95,
    lambda run: run.queue_wait_p50,
    lambda run: run.queue_wait_p95,
)


def _idle(results: Results) -> Table:
    rows = []
    for contender in SERVERS:
        seconds = [
            value for run in results.idle if run.contender is contender for value in run.latencies
        ]
        if seconds:
            rows.append((contender.label, str(len(seconds)), _milliseconds(seconds)))
    header = ("contender", "requests", "median ms")
    return Table("Single requests, idle (`uniform`)", header, rows)


def _curve(results: Results) -> Table:
    rows = [
        (str(point.batch), f"{point.unet_row_ms:.2f}", f"{point.decode_image_ms:.2f}")
        for point in results.curve
    ]
    header = ("batch", "U-Net ms per row", "VAE ms per image")
    return Table("The model alone", header, rows)


def _errors(run: Run) -> int:
    return sum(run.errors.values())


def _milliseconds(seconds: Iterable[float]) -> str:
    value = middle(seconds)
    return "" if value is None else f"{1000 * value:.1f}"


def _text(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
