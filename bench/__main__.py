"""``python -m bench``: contenders side by side, the report, and what the service itself adds."""

import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Annotated, Final

import typer
from rich.console import Console
from rich.table import Table as RichTable

from bench.benchmark import CannotMeasure, run
from bench.contenders import Contender
from bench.previews import Way, measure_previews
from bench.processes import ContenderFailed
from bench.results import Results
from bench.rounds import QUICK, Plan
from bench.tables import Table, all_tables
from bench.workloads import Workload
from koala import output_file, processors

# The model's device is not the cores that serve, as on a machine with a GPU.
_THREADS: Final = max(1, processors.available() - 1)

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
# Tables are wider than the 80 columns that a pipe is taken for.
out = Console(highlight=False, width=max(110, Console().width))
err = Console(stderr=True, highlight=False)


@app.callback(invoke_without_command=True)
def main(
    context: typer.Context,
    contender: Annotated[
        list[Contender] | None, typer.Option(help="Who to measure; repeatable. Default: all.")
    ] = None,
    workload: Annotated[
        list[Workload] | None, typer.Option(help="What to ask for; repeatable. Default: both.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Seconds, to see that it works.")] = False,
    rounds: Annotated[int | None, typer.Option(min=1, help="Rounds to take medians of.")] = None,
    threads: Annotated[
        int,
        typer.Option(min=1, help="Torch threads of each contender. Default: all cores but one."),
    ] = _THREADS,
    rows: Annotated[
        int | None, typer.Option(min=2, help="Row cap of all. Default: what our worker chooses.")
    ] = None,
    rate: Annotated[
        float | None,
        typer.Option(help="Poisson arrivals per second. Default: 70 % of our saturation."),
    ] = None,
    output: Annotated[Path | None, typer.Option(help="File for the results, as JSON.")] = None,
) -> None:
    """Measure the service and its peers side by side; about a quarter of an hour for all."""
    # So that the contenders are ended on the way out.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    processors.configure(os.environ)
    if context.invoked_subcommand is not None:
        return
    if output is not None:
        try:
            output_file.check(output)
        except OSError as error:
            raise _fail(f"--output: {error.filename}: {error.strerror}") from None
    plan = QUICK if quick else Plan()
    try:
        results = run(
            replace(plan, rounds=rounds or plan.rounds),
            workload or list(Workload),
            contender or list(Contender),
            threads=threads,
            rows=rows,
            rate=rate,
            say=err.print,
        )
    except (CannotMeasure, ContenderFailed) as error:
        raise _fail(str(error)) from None
    for table in all_tables(results):
        _print(table)
    if output is not None:
        output_file.replace(output, f"{results.model_dump_json(indent=1)}\n".encode())


@app.command()
def report(
    results: Annotated[Path, typer.Argument(help="What --output wrote.", exists=True)],
    document: Annotated[
        Path, typer.Option(help="Markdown file to write the results into.", exists=True)
    ] = Path("docs/performance.md"),
) -> None:
    """Write the results into the document, and plots into a folder of its name beside it."""
    try:
        from bench import plots
    except ModuleNotFoundError as error:
        raise _fail(f"plots need {error.name}: pip install 'koala-serve[bench]'") from None
    from bench.report import NoMarks, plots_folder, write

    measured = Results.model_validate_json(results.read_text())
    try:
        write(measured, document)
    except NoMarks as error:
        raise _fail(str(error)) from None
    folder = plots_folder(document)
    folder.mkdir(exist_ok=True)
    plots.throughput(measured, folder / "throughput.png")
    plots.latency(measured, folder / "latency.png")


@app.command()
def where(
    workload: Annotated[Workload, typer.Option(help="What to ask for.")] = Workload.UNIFORM,
    clients: Annotated[int, typer.Option(min=1, help="Clients of the closed loop.")] = 32,
    seconds: Annotated[float, typer.Option(min=1, help="How long to look.")] = 20.0,
    threads: Annotated[
        int, typer.Option(min=1, help="Torch threads of the worker. Default: all cores but one.")
    ] = _THREADS,
) -> None:
    """Where our own time goes under load: the worker's loop by phases, CPU by process."""
    from bench.where import measure

    try:
        found = measure(workload, clients, seconds, threads)
    except ContenderFailed as error:
        raise _fail(str(error)) from None
    for table in found.tables:
        _print(table)


@app.command()
def overhead(
    rounds: Annotated[int, typer.Option(min=1, help="Alternations of the two sides.")] = 5,
    seconds: Annotated[float, typer.Option(min=0.5, help="Window of a closed loop.")] = 5.0,
    requests: Annotated[int, typer.Option(min=1, help="Single requests per round.")] = 20,
    threads: Annotated[
        int, typer.Option(min=1, help="Torch threads of both sides. Default: all cores but one.")
    ] = _THREADS,
    output: Annotated[Path | None, typer.Option(help="File for the figures, as JSON.")] = None,
) -> None:
    """Throughput over HTTP against the raw loop, and the latency that the service adds."""
    from bench.overhead import measure

    try:
        figures = measure(rounds, seconds, requests, threads)
    except ContenderFailed as error:
        raise _fail(str(error)) from None
    rows = [
        (name, f"{value:.3f}" if isinstance(value, float) else str(value))
        for name, value in figures.model_dump().items()
        if not isinstance(value, list)
    ]
    _print(Table("Overhead", ("figure", "value"), rows))
    if output is not None:
        output.write_text(figures.model_dump_json(indent=1) + "\n")


@app.command()
def previews(
    way: Annotated[
        list[Way] | None, typer.Option(help="How they are drawn; repeatable. Default: all.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Alternations of the two sides.")] = 5,
    seconds: Annotated[float, typer.Option(min=0.5, help="Window of a closed loop.")] = 5.0,
    count: Annotated[int, typer.Option(min=1, max=20, help="Previews of each image.")] = 8,
    threads: Annotated[int, typer.Option(min=1, help="Torch threads of the worker.")] = 2,
) -> None:
    """Throughput with previews of every image against none, over HTTP."""
    rows = []
    try:
        for each in way or list(Way):
            cost = measure_previews(each, rounds, seconds, count, threads)
            rates = (cost.images_per_second, cost.images_per_second_with_previews)
            spread = (min(cost.throughput_ratios), max(cost.throughput_ratios))
            rows.append(
                (
                    cost.way.value,
                    *(f"{rate:.2f}" for rate in rates),
                    f"{cost.throughput_ratio:.3f}",
                    f"{spread[0]:.3f} to {spread[1]:.3f}",
                    f"{cost.share_of_loop:.1%}",
                    f"{cost.previews_shown} / {cost.previews_dropped}",
                )
            )
    except ContenderFailed as error:
        raise _fail(str(error)) from None
    header = (
        "drawn", "images/s without", "with", "ratio", "ratios", "of the loop", "shown / dropped"
    )  # fmt: skip
    _print(Table("Previews", header, rows))


@app.command()
def eta(
    rounds: Annotated[int, typer.Option(min=1, help="Rounds, on one service.")] = 3,
    jobs: Annotated[int, typer.Option(min=3, help="Jobs of a round.")] = 56,
    clients: Annotated[
        int, typer.Option(min=1, help="Jobs at any time; so many count at neither end of a round.")
    ] = 18,
    shortest: Annotated[
        float, typer.Option(min=0, help="ETAs told fewer seconds before the end do not count.")
    ] = 2.0,
    threads: Annotated[
        int, typer.Option(min=1, help="Torch threads of the worker. Default: all cores but one.")
    ] = _THREADS,
) -> None:
    """How far ETAs are from what comes under load; on a quiet machine."""
    if jobs <= 2 * clients:
        raise _fail(f"--jobs: more than twice the clients, {2 * clients}")
    from bench.eta import measure

    try:
        errors = measure(rounds, jobs, clients, shortest, threads)
    except (CannotMeasure, ContenderFailed) as error:
        raise _fail(str(error)) from None
    rows = [
        (
            told,
            str(len(each)),
            f"{median(abs(error) for error in each):.1%}",
            f"{median(each):+.1%}",
        )
        for told, each in (("at admission", errors.at_admission), ("half way", errors.half_way))
    ]
    header = ("told", "ETAs", "median size of the error", "median error")
    _print(Table("ETAs", header, rows))


def _fail(message: str) -> typer.Exit:
    err.print(f"bench: {message}", style="red", markup=False, soft_wrap=True)
    return typer.Exit(1)


def _print(table: Table) -> None:
    rich = RichTable(title=table.title.replace("`", ""), title_justify="left", box=None)
    for i, name in enumerate(table.header):
        rich.add_column(name, justify="right" if i else "left", no_wrap=True)
    for row in table.rows:
        rich.add_row(*(cell.replace("`", "").replace("**", "") for cell in row))
    out.print(rich, end="\n\n")


if __name__ == "__main__":
    app()
