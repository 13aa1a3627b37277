"""``python -m bench``: the service against what the model alone can do, side by side."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import httpx
import torch
import typer
from rich.console import Console
from rich.table import Table

from bench.limits import RawLoop, engine_alone
from bench.load import closed_loop, one_by_one
from koala.catalogue import DEMO_FOLDER
from worker.engine import ResidentPipeline

CLIENTS = 16


@contextmanager
def service(port: int) -> Iterator[str]:
    """A ``koala up`` of its own with the demo model; its address."""
    with tempfile.TemporaryDirectory() as folder:
        env = {
            **{name: value for name, value in os.environ.items() if name[:6] != "KOALA_"},
            "KOALA_DATA_DIR": folder,
            "KOALA_PORT": str(port),
            "KOALA_LOG_LEVEL": "warning",
        }
        process = subprocess.Popen([sys.executable, "-m", "koala", "up"], env=env)
        base_url = f"http://127.0.0.1:{port}"
        try:
            _wait(base_url, process)
            yield base_url
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(30)


def _wait(base_url: str, process: subprocess.Popen[bytes]) -> None:
    for _ in range(600):
        if process.poll() is not None:
            raise SystemExit("bench: the service did not start")
        try:
            if httpx.get(f"{base_url}/readyz").is_success:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    raise SystemExit("bench: the service did not get ready within 120 s")


def measure(base_url: str, rounds: int, images: int) -> dict[str, Any]:
    """Alternate the sides, so that a noisy minute hits both; medians over the rounds."""
    raw = RawLoop(str(DEMO_FOLDER), CLIENTS)
    pipeline = ResidentPipeline.load(
        DEMO_FOLDER, device="cpu", scheduler_overrides={"timestep_spacing": "trailing"}
    )
    raw.images_per_second(1)
    asyncio.run(closed_loop(base_url, CLIENTS, CLIENTS))
    throughput: dict[str, list[float]] = {"raw": [], "http": [], "ratio": []}
    latency: dict[str, list[float]] = {"engine": [], "http": []}
    for _ in range(rounds):
        throughput["raw"].append(raw.images_per_second(max(1, images // CLIENTS)))
        throughput["http"].append(asyncio.run(closed_loop(base_url, CLIENTS, images)))
        throughput["ratio"].append(throughput["http"][-1] / throughput["raw"][-1])
        latency["engine"] += engine_alone(pipeline, 20)
        latency["http"] += one_by_one(base_url, 20)
    engine_ms, http_ms = (1000 * median(latency[side]) for side in ("engine", "http"))
    return {
        "clients": CLIENTS,
        "rounds": rounds,
        "torch_threads": torch.get_num_threads(),
        "raw_images_per_second": median(throughput["raw"]),
        "http_images_per_second": median(throughput["http"]),
        "throughput_ratio": median(throughput["ratio"]),
        "throughput_ratios": throughput["ratio"],
        "engine_ms": engine_ms,
        "http_ms": http_ms,
        "added_ms": http_ms - engine_ms,
        "latency_ratio": http_ms / engine_ms,
    }


def main(
    rounds: Annotated[int, typer.Option(min=1, help="Alternations of the two sides.")] = 5,
    images: Annotated[int, typer.Option(min=16, help="Images per round and side.")] = 96,
    port: Annotated[int, typer.Option(help="Port for the service under test.")] = 8399,
    output: Annotated[Path | None, typer.Option(help="File for the figures, as JSON.")] = None,
) -> None:
    """Measure throughput over HTTP against the raw loop, and the latency the service adds."""
    with service(port) as base_url:
        figures = measure(base_url, rounds, images)
    table = Table(box=None)
    table.add_column("figure")
    table.add_column("value", justify="right")
    for name, value in figures.items():
        if not isinstance(value, list):
            table.add_row(name, f"{value:.3f}" if isinstance(value, float) else str(value))
    Console().print(table)
    if output is not None:
        output.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
