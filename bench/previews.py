"""What previews cost: throughput with them in every request against none at all."""

import asyncio
import tempfile
from collections import Counter
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from statistics import median
from typing import Final

import httpx
from pydantic import BaseModel, ConfigDict

from bench.figures import rate_within
from bench.load import Pace, closed_loop
from bench.scrape import totals
from bench.servers import Koala
from bench.workloads import Request, Workload, requests

CLIENTS: Final = 16
_LOOP: Final = "koala_loop_seconds_total"
_SHOWING: Final = "koala_showing_seconds_total"
_PREVIEWS: Final = "koala_previews_total"


class Way(StrEnum):
    """How many previews are drawn: what their share of the time pays for, or all of them."""

    SHIPPED = "shipped"
    ALL = "all"


class PreviewCost(BaseModel):
    """One way of drawing previews: medians over the rounds, and what they are made of.

    ``share_of_loop`` is what previews took where they were wanted, by the worker's own clocks: the
    loop's time of drawing them, and the processor's of encoding and publishing them, as if that
    held up the loop. It does not suffer from neighbours as throughput does.
    """

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
    share_of_loop: float
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
    sides = (0, previews)
    rates: dict[int, list[float]] = {count: [] for count in sides}
    taken: Counter[tuple[str, str]] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        worker = ("bench.drawn_previews", way.value)
        service = Koala(Path(folder), threads, worker=worker)
        try:
            service.wait_until_ready()
            # A pass of both sides that does not count.
            for count in sides:
                _rate(service, -1, count, Pace(window=1.0))
            for number in range(rounds):
                for count in sides if number % 2 == 0 else reversed(sides):
                    before = _totals(service)
                    rates[count].append(_rate(service, number, count, pace))
                    if count:
                        taken.update(_totals(service))
                        taken.subtract(before)
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
        share_of_loop=(taken[_LOOP, "preview"] + taken[_SHOWING, ""])
        / sum(seconds for (name, _), seconds in taken.items() if name == _LOOP),
        previews_shown=round(taken[_PREVIEWS, "shown"]),
        previews_dropped=round(taken[_PREVIEWS, "dropped"]),
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


def _totals(service: Koala) -> Counter[tuple[str, str]]:
    """The worker's metrics so far, by name and label."""
    text = httpx.get(service.metrics_url, timeout=10, trust_env=False).raise_for_status().text
    return Counter(totals(text))
