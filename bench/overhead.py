"""The small comparison: what gateway, queue and worker take of the model's own speed."""

import asyncio
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Final

import torch
from pydantic import BaseModel, ConfigDict

from bench.figures import rate_within
from bench.load import Address, Pace, closed_loop, one_by_one
from bench.raw_limit import Batches, RawLoop
from bench.servers import Koala
from bench.workloads import SIDE, Request, Workload, requests
from koala.catalogue import DEMO_FOLDER, resolve
from worker.engine import Engine, Finished, ResidentPipeline, SampleRequest

CLIENTS: Final = 16
# A request of ``uniform`` takes two rows, so the clients together fill this batch.
_BATCHES: Final = Batches(unet_rows=2 * CLIENTS, images=CLIENTS)


class Overhead(BaseModel):
    """The two figures, medians over the rounds, and what they are made of."""

    model_config = ConfigDict(frozen=True)

    clients: int
    rounds: int
    torch_threads: int
    raw_images_per_second: float
    http_images_per_second: float
    throughput_ratio: float
    throughput_ratios: list[float]
    engine_ms: float
    http_ms: float
    added_ms: float


def measure(rounds: int, seconds: float, idle_requests: int, threads: int) -> Overhead:
    """Alternate the sides, so that a noisy minute hits both.

    Args:
        rounds: Alternations.
        seconds: Shortest window of a closed loop.
        idle_requests: Single requests per round and side.
        threads: CPU threads of both sides' torch.

    Raises:
        ContenderFailed: The service does not start.
    """
    torch.set_num_threads(threads)
    raw = RawLoop(DEMO_FOLDER)
    overrides = resolve("koala-demo").scheduler_overrides
    pipeline = ResidentPipeline.load(DEMO_FOLDER, device="cpu", scheduler_overrides=overrides)
    raws: list[float] = []
    https: list[float] = []
    engine_alone: list[float] = []
    over_http: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        service = Koala(Path(folder), threads)
        try:
            service.wait_until_ready()
            # A pass of both sides that does not count.
            _raw_rate(raw)
            _http_rate(service.address, -1, Pace(window=1.0))
            for number in range(rounds):
                raws.append(_raw_rate(raw))
                https.append(
                    _http_rate(
                        service.address, number, Pace(window=seconds, longest_window=2 * seconds)
                    )
                )
                engine_alone += _engine_alone(pipeline, number, idle_requests)
                stream = requests(Workload.UNIFORM, number)
                over_http += one_by_one({"": service.address}, stream, idle_requests)[""]
        finally:
            service.stop()
    ratios = [http / raw for http, raw in zip(https, raws, strict=True)]
    engine_ms, http_ms = 1000 * median(engine_alone), 1000 * median(over_http)
    return Overhead(
        clients=CLIENTS,
        rounds=rounds,
        torch_threads=threads,
        raw_images_per_second=median(raws),
        http_images_per_second=median(https),
        throughput_ratio=median(ratios),
        throughput_ratios=ratios,
        engine_ms=engine_ms,
        http_ms=http_ms,
        added_ms=http_ms - engine_ms,
    )


def _raw_rate(raw: RawLoop) -> float:
    images = 2 * CLIENTS
    rows = sum(request.unet_rows for request in _some(requests(Workload.UNIFORM, 0), images))
    seconds, _ = raw.run(images, rows, _BATCHES)
    return images / seconds


def _http_rate(address: Address, seed: int, pace: Pace) -> float:
    stream = requests(Workload.UNIFORM, seed)
    [window] = asyncio.run(closed_loop(address, stream, [CLIENTS], pace))
    return rate_within(window.answers, window.start, window.end).images_per_second


def _engine_alone(pipeline: ResidentPipeline, seed: int, count: int) -> list[float]:
    """Seconds that each of ``count`` single images takes in the engine, one after another."""
    engine = Engine(pipeline, max_rows=_BATCHES.unet_rows)
    seconds = []
    for request in _some(requests(Workload.UNIFORM, seed), count):
        start = time.perf_counter()
        engine.add(
            SampleRequest(
                key=request.seed,
                prompt=request.prompt,
                negative_prompt=None,
                width=SIDE,
                height=SIDE,
                num_inference_steps=request.num_inference_steps,
                guidance_scale=request.guidance_scale,
                seed=request.seed,
            )
        )
        while not any(isinstance(event, Finished) for event in engine.step()):
            pass
        seconds.append(time.perf_counter() - start)
    return seconds


def _some(stream: Iterator[Request], count: int) -> list[Request]:
    return [next(stream) for _ in range(count)]
