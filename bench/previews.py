"""What previews cost: throughput with them in every request against none at all."""

import asyncio
import tempfile
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from statistics import median
from typing import Final

import httpx
from prometheus_client.parser import text_string_to_metric_families
from pydantic import BaseModel, ConfigDict

from bench.figures import rate_within
from bench.load import Pace, closed_loop
from bench.processes import free_port
from bench.servers import Koala
from bench.workloads import Request, Workload, requests

CLIENTS: Final = 16


class Way(StrEnum):
    """How previews are drawn: as always, by the decoder whatever it takes, or by the map only."""

    SHIPPED = "shipped"
    DECODER = "decoder"
    MAP = "map"


class PreviewCost(BaseModel):
    """One way of drawing previews: medians over the rounds, and what they are made of."""

    model_config = ConfigDict(frozen=True)

    way: Way
    clients: int
    previews_of_an_image: int
    rounds: int
    torch_threads: int
    images_per_second: float
    images_per_second_with_previews: float
    throughput_ratio: float
    throughput_ratios: list[float]
    previews_shown: int
    previews_dropped: int


def measure_previews(
    way: Way, rounds: int, seconds: float, previews: int, threads: int
) -> PreviewCost:
    """Requests with previews and without alternate, so that a noisy minute hits both.

    Args:
        way: How previews are drawn.
        rounds: Alternations.
        seconds: Shortest window of a closed loop.
        previews: Previews that each image is asked for.
        threads: CPU threads of the worker's torch.

    Raises:
        ContenderFailed: The service does not start.
    """
    pace = Pace(window=seconds, longest_window=2 * seconds)
    port = free_port()
    sides = (0, previews)
    rates: dict[int, list[float]] = {count: [] for count in sides}
    with tempfile.TemporaryDirectory() as folder:
        settings = {"KOALA_METRICS_PORT": str(port)}
        worker = ("bench.drawn_previews", way.value)
        service = Koala(Path(folder), threads, worker=worker, settings=settings)
        try:
            service.wait_until_ready()
            # A pass of both sides that does not count.
            for count in sides:
                _rate(service, -1, count, Pace(window=1.0))
            for number in range(rounds):
                for count in sides if number % 2 == 0 else reversed(sides):
                    rates[count].append(_rate(service, number, count, pace))
            shown = _previews(f"http://127.0.0.1:{port}/metrics")
        finally:
            service.stop()
    without, with_previews = (rates[count] for count in sides)
    ratios = [some / none for some, none in zip(with_previews, without, strict=True)]
    return PreviewCost(
        way=way,
        clients=CLIENTS,
        previews_of_an_image=previews,
        rounds=rounds,
        torch_threads=threads,
        images_per_second=median(without),
        images_per_second_with_previews=median(with_previews),
        throughput_ratio=median(ratios),
        throughput_ratios=ratios,
        previews_shown=shown.get("shown", 0),
        previews_dropped=shown.get("dropped", 0),
    )


@dataclass(frozen=True, slots=True)
class _Watched(Request):
    """A request with previews."""

    previews: int


def _rate(service: Koala, seed: int, previews: int, pace: Pace) -> float:
    stream = requests(Workload.UNIFORM, seed)
    watched = (_Watched(**asdict(request), previews=previews) for request in stream)
    [window] = asyncio.run(closed_loop(service.address, watched, [CLIENTS], pace))
    return rate_within(window.answers, window.start, window.end).images_per_second


def _previews(url: str) -> dict[str, int]:
    """What became of all previews so far, from the worker's metrics."""
    text = httpx.get(url, timeout=10, trust_env=False).text
    return {
        sample.labels["outcome"]: int(sample.value)
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == "koala_previews_total"
    }
