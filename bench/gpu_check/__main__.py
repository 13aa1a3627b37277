"""``python -m bench.gpu_check``: the stack with a real model on this machine's card."""

import asyncio
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Annotated, Final

import httpx
import torch
import typer
from rich.console import Console
from rich.table import Table

from bench.figures import percentile, rate_within
from bench.gpu_check.reference import planned_peak, published, published_card
from bench.gpu_check.verdicts import Level, Measured, Verdict, report
from bench.load import Address, Pace, Window, closed_loop, one_by_one
from bench.processes import ContenderFailed, free_port
from bench.scrape import peak_memory, scrape
from bench.servers import Koala
from bench.workloads import Request
from koala.catalogue import ModelCard, resolve
from koala.errors import ModelNotFound

CLIENTS: Final = (1, 4, 8)

_READY_SECONDS: Final = 600.0
_SINGLE_REQUESTS: Final = 5
_LOOK_SECONDS: Final = 0.2
_COLOURS: Final = {Verdict.OK: "green", Verdict.NOTE: "yellow", Verdict.FAIL: "red"}

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
out = Console(highlight=False, width=max(110, Console().width))


@dataclass(frozen=True, slots=True)
class SizedRequest(Request):
    """A request for one size."""

    size: str = "1024x1024"


@app.command()
def main(
    model: Annotated[
        str, typer.Option(help="A name from `koala models`, or a diffusers folder.")
    ] = "koala-lightning-700m",
    size: Annotated[str | None, typer.Option(help="WIDTHxHEIGHT; else the native one.")] = None,
    seconds: Annotated[float, typer.Option(min=1, help="Of load for each number of clients.")] = 30,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Torch threads of the worker; else all cores.")
    ] = None,
) -> None:
    """Exit code 0: nothing failed. 1: a line failed, or the service does not start."""
    # So that the parts are ended on the way out.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        card = resolve(model)
        size = size or f"{card.native_side}x{card.native_side}"
        width, height = _sides(card, size)
        measured = _measure(model, card, size, seconds, threads or os.cpu_count() or 1)
    except (ModelNotFound, ContenderFailed, ValueError, OSError, httpx.HTTPError) as error:
        out.print(f"gpu-check: {error}", style="red", markup=False)
        raise typer.Exit(1) from None
    known = published(card.id, width) if width == height else []
    planned = planned_peak(model, size, measured.vram or 8 * 2**30)
    device = measured.device or "CPU"
    out.print(f"{card.id}, {size}, {card.steps} steps, {device}", style="bold", markup=False)
    table = Table("", "measured", "to compare with", "", box=None, pad_edge=False)
    failed = False
    for line in report(measured, known, published_card(measured.device), planned):
        colour = _COLOURS[line.verdict]
        table.add_row(
            line.subject, line.measured, line.reference, f"[{colour}]{line.verdict}[/{colour}]"
        )
        failed = failed or line.verdict is Verdict.FAIL
    out.print(table)
    raise typer.Exit(1 if failed else 0)


def _sides(card: ModelCard, size: str) -> tuple[int, int]:
    width, _, height = size.partition("x")
    if not (width.isdecimal() and height.isdecimal()):
        raise ValueError(f"--size: WIDTHxHEIGHT in pixels, got {size!r}")
    wrong = card.size_error(int(width), int(height))
    if wrong is not None:
        raise ValueError(f"--size: {size}: {wrong}")
    return int(width), int(height)


def _measure(model: str, card: ModelCard, size: str, seconds: float, threads: int) -> Measured:
    """Start the stack, load it, stop it."""
    has_gpu = torch.cuda.is_available()
    metrics_port = free_port()
    settings = {"KOALA_MODEL": model, "KOALA_METRICS_PORT": str(metrics_port)}
    with tempfile.TemporaryDirectory(prefix="koala-gpu-check-") as folder:
        server = Koala(Path(folder), threads, settings=settings)
        try:
            server.wait_until_ready(_READY_SECONDS)
            stream = _requests(card, size)
            one_by_one({"": server.address}, stream, 1)
            singles = one_by_one({"": server.address}, stream, _SINGLE_REQUESTS)[""]
            with _watched(f"http://127.0.0.1:{metrics_port}/metrics", has_gpu) as seen:
                levels = _load(server.address, stream, median(singles), seconds)
            peak = max(seen) if has_gpu else peak_memory(server.pids["worker"])
        finally:
            server.stop()
    return Measured(
        device=torch.cuda.get_device_name() if has_gpu else "",
        vram=torch.cuda.mem_get_info()[1] if has_gpu else 0,
        idle_latency=median(singles),
        peak=int(peak),
        levels=levels,
    )


def _requests(card: ModelCard, size: str) -> Iterator[Request]:
    seed = 0
    while True:
        prompt = f"a koala on a blue background, number {seed}"
        yield SizedRequest(prompt, seed, card.steps, card.guidance_scale, size)
        seed += 1


def _load(
    address: Address, stream: Iterator[Request], latency: float, seconds: float
) -> list[Level]:
    # With eight clients an answer takes about eight times as long as alone.
    pace = Pace(settle=max(1.0, 3 * latency), window=seconds, longest_window=3 * seconds)
    windows = asyncio.run(closed_loop(address, stream, CLIENTS, pace))
    return [_level(window) for window in windows]


def _level(window: Window) -> Level:
    images = [a for a in window.inside if a.is_image and a.ended is not None]
    latencies = [a.ended - a.due for a in images if a.ended is not None]
    rate = rate_within(window.answers, window.start, window.end)
    return Level(
        clients=window.clients,
        images_per_minute=60 * rate.images_per_second,
        latency=percentile(latencies, 50) if latencies else 0.0,
        errors=len(window.inside) - len(images),
    )


@contextmanager
def _watched(url: str, has_gpu: bool) -> Iterator[list[float]]:
    """What torch holds on the card, looked at now and then while the block runs."""
    seen: list[float] = []
    stopping = threading.Event()

    def look() -> None:
        while not stopping.wait(_LOOK_SECONDS):
            seen.append(scrape(url)["koala_vram_reserved_bytes"])

    watcher = threading.Thread(target=look, daemon=True)
    if has_gpu:
        watcher.start()
    try:
        yield seen
    finally:
        stopping.set()
        if has_gpu:
            watcher.join()


if __name__ == "__main__":
    app()
