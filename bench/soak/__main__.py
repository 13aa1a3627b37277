"""``python -m bench.soak``: steady load for minutes, and whether anything grew."""

import asyncio
import json
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Final

import httpx
import redis
import typer
from rich.console import Console
from rich.table import Table

from bench.processes import ContenderFailed
from bench.servers import Koala
from bench.soak.load import Load
from bench.soak.samples import Sample, Sampler
from bench.soak.verdict import SHORTEST_SECONDS, Trend, trends
from koala import output_file
from koala.connections import connect
from koala.keys import Keys

# Results expire while the load goes on, events after them: both are over by the end of the warm-up.
_RESULT_TTL: Final = 30
_JOB_TIMEOUT: Final = 30
_SAMPLE_SECONDS: Final = 3.0

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
out = Console(highlight=False, width=max(110, Console().width))


@app.command()
def main(
    minutes: Annotated[float, typer.Option(min=0.5, help="How long, warm-up included.")] = 15.0,
    warm_up: Annotated[float, typer.Option(min=0, help="Minutes that are not judged.")] = 3.0,
    threads: Annotated[int, typer.Option(min=1, help="Torch threads of the worker.")] = 1,
    seed: Annotated[int, typer.Option(help="Of the mix of requests.")] = 0,
    output: Annotated[
        Path | None, typer.Option(help="File for the samples, as JSON; a plot goes beside it.")
    ] = None,
) -> None:
    """Exit code 0: everything stayed flat. 1: something grew or failed. 2: too short to say."""
    # So that the parts are ended on the way out.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if output is not None:
        output_file.check(output)
    with tempfile.TemporaryDirectory(prefix="koala-soak-") as folder:
        try:
            samples, outcomes = _soak(Path(folder), minutes, threads, seed)
        except (ContenderFailed, httpx.HTTPError, redis.RedisError, OSError) as error:
            out.print(f"soak: {error!r}", style="red", markup=False)
            raise typer.Exit(1) from None
    found = trends(samples, 60 * warm_up)
    _print(found, outcomes)
    if output is not None:
        _write(output, samples, found, outcomes, 60 * warm_up)
    wrong = [name for name in outcomes if name.rsplit(" ", 1)[1].startswith("5")]
    grown = [trend.name for trend in found if not trend.is_flat]
    for name in wrong:
        out.print(f"failed: {name}", style="red")
    if 60 * (minutes - warm_up) < SHORTEST_SECONDS:
        out.print("No verdict: too short after the warm-up.", style="yellow")
        raise typer.Exit(1 if wrong else 2)
    for name in grown:
        out.print(f"grows: {name}", style="red")
    out.print("Flat." if not grown else "Not flat.", style="bold")
    raise typer.Exit(1 if grown or wrong else 0)


def _soak(
    folder: Path, minutes: float, threads: int, seed: int
) -> tuple[list[Sample], dict[str, int]]:
    settings = {"KOALA_RESULT_TTL": str(_RESULT_TTL), "KOALA_JOB_TIMEOUT": str(_JOB_TIMEOUT)}
    server = Koala(folder, threads, settings=settings)
    try:
        server.wait_until_ready()
        with connect(server.settings) as connection:
            images = Path(server.settings.resolved_image_store)
            keys = Keys(server.settings.queue)
            sampler = Sampler(server.pids, connection, keys, images)
            load = Load(server.address.base_url, seed)
            samples = asyncio.run(_watch(load, sampler, 60 * minutes))
        return samples, dict(sorted(load.outcomes.items()))
    finally:
        server.stop()


async def _watch(load: Load, sampler: Sampler, seconds: float) -> list[Sample]:
    samples: list[Sample] = []
    running = asyncio.create_task(load.run())
    while not running.done() and (not samples or samples[-1].seconds < seconds):
        await asyncio.sleep(_SAMPLE_SECONDS)
        samples.append(await asyncio.to_thread(sampler.look))
    load.stop()
    await running
    return samples


def _print(found: Sequence[Trend], outcomes: dict[str, int]) -> None:
    table = Table("quantity", "median", "lowest", "highest", "per hour", "allowed", box=None)
    for column in table.columns[1:]:
        column.justify = "right"
    for t in found:
        figures = (t.middle, t.lowest, t.highest, t.per_hour, t.limit)
        style = "" if t.is_flat else "red"
        table.add_row(t.name, *(f"{figure:.1f}" for figure in figures), style=style)
    out.print(table)
    out.print(", ".join(f"{name} x {count}" for name, count in outcomes.items()))


def _write(
    output: Path,
    samples: Sequence[Sample],
    found: Sequence[Trend],
    outcomes: dict[str, int],
    warm_up: float,
) -> None:
    from bench.soak import plot

    names = list(samples[0].values)
    record = {
        "warm_up_seconds": warm_up,
        "outcomes": outcomes,
        "trends": {
            t.name: {
                "median": round(t.middle, 2),
                "per_hour": round(t.per_hour, 2),
                "allowed_per_hour": round(t.limit, 2),
            }
            for t in found
        },
        "columns": ["seconds", *names],
    }
    rows = [[round(s.seconds, 1), *(round(s.values[name], 2) for name in names)] for s in samples]
    # A sample a line keeps the file readable.
    lines = ",\n  ".join(map(json.dumps, rows))
    text = json.dumps(record, indent=1).removesuffix("\n}")
    output.write_text(f'{text},\n "samples": [\n  {lines}\n ]\n}}\n')
    plot.write(samples, warm_up, output.with_suffix(".svg"))


if __name__ == "__main__":
    app()
