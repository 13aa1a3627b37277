"""The benchmark on real servers: ours, ours batching whole requests, an overloaded one."""

import asyncio
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import FastAPI, Response

from bench.contenders import Contender
from bench.load import Address, open_loop
from bench.processes import free_port
from bench.records import poisson_run
from bench.results import Results
from bench.rounds import QUICK
from bench.servers import Koala
from bench.workloads import Workload, arrivals, requests


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bench", *arguments],
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=550,
    )


def test_a_quick_run_measures_our_service_beside_the_raw_limit(tmp_path: Path) -> None:
    output = tmp_path / "results.json"
    done = bench(
        *("--quick", "--contender", "ours", "--contender", "raw", "--workload", "mixed"),
        *("--rate", "4", "--output", str(output)),
    )

    assert done.returncode == 0, done.stderr
    results = Results.model_validate_json(output.read_text())
    closed = [run for run in results.runs if run.load == "closed"]
    [poisson] = [run for run in results.runs if run.load == "poisson"]
    assert [run.clients for run in closed] == [1, 4]
    assert all(run.errors == {} for run in results.runs)
    assert poisson.images == len(arrivals(4, QUICK.poisson_seconds, seed=0))
    assert poisson.queue_wait_p50 is not None and poisson.p50 is not None
    assert 0 <= poisson.queue_wait_p50 < poisson.p50
    expected = sum(request.unet_rows for request in islice(requests(Workload.MIXED, 0), 4))
    assert [(run.images, run.unet_rows) for run in results.raw] == [(4, expected)]
    assert [run.contender for run in results.idle] == [Contender.OURS]
    assert "mixed, closed loop" in done.stdout


def test_without_ourselves_a_rate_has_to_be_given() -> None:
    done = bench("--quick", "--contender", "lock")

    assert done.returncode == 1
    assert "--rate" in done.stderr


@pytest.fixture
def whole(tmp_path: Path) -> Iterator[Koala]:
    server = Koala(tmp_path, threads=1, worker=("bench.whole_requests",))
    try:
        server.wait_until_ready()
        yield server
    finally:
        server.stop()


def test_where_whole_requests_are_batched_a_short_one_waits_for_a_long_one(whole: Koala) -> None:
    with httpx.Client(base_url=whole.address.base_url, timeout=300, trust_env=False) as http:

        def ask(steps: int) -> str:
            body = {"prompt": "a koala", "num_inference_steps": steps}
            headers = {"Prefer": "respond-async"}
            return str(http.post(whole.address.path, json=body, headers=headers).json()["id"])

        def job(job_id: str, wait: int = 0) -> dict[str, Any]:
            answer: dict[str, Any] = http.get(f"/v1/jobs/{job_id}", params={"wait": wait}).json()
            return answer

        long = ask(150)
        while job(long)["progress"]["step"] == 0:
            time.sleep(0.01)
        short = ask(1)
        ended = job(short, wait=50)

        assert ended["status"] == "completed"
        assert job(long)["status"] == "completed"
        # It was in the queue until the long one was done.
        assert ended["result"]["timings"]["queued_seconds"] > 0
        assert ended["started_at"] >= job(long)["completed_at"]


@pytest.fixture
def overloaded() -> Iterator[tuple[Address, threading.Event]]:
    """A server that answers one request, refuses one, and lets the rest wait for the event."""
    app, release = FastAPI(), threading.Event()
    seen: list[int] = []

    @app.post("/v1/images/generations")
    async def generate(body: dict[str, Any]) -> Any:
        seen.append(body["seed"])
        if len(seen) == 2:
            return Response(status_code=429)
        if len(seen) > 2:
            await asyncio.to_thread(release.wait)
        return {"data": [{"b64_json": "aGk="}], "timings": {"queued_seconds": 0.25}}

    address = Address(f"http://127.0.0.1:{free_port()}")
    config = uvicorn.Config(app, port=httpx.URL(address.base_url).port or 0, log_level="error")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield address, release
    release.set()
    server.should_exit = True
    thread.join()


def test_what_an_overloaded_server_leaves_is_told_as_unfinished(
    overloaded: tuple[Address, threading.Event],
) -> None:
    address, release = overloaded
    patience = 2.0
    threading.Timer(patience + 1.5, release.set).start()

    run = asyncio.run(
        open_loop(address, requests(Workload.MIXED, 0), [0.0, 0.3, 0.4, 0.5], patience)
    )
    record = poisson_run(Contender.LOCK, Workload.MIXED, 0, 5.0, run, 0.0)

    assert record.images == 1
    assert record.errors == {"status 429": 1}
    assert len(record.latencies) == 1
    assert len(record.unfinished) == 2
    assert min(record.unfinished) == pytest.approx(patience, abs=0.01)
    assert record.p95 == max(record.unfinished)
    assert record.queue_wait_p50 == 0.25
