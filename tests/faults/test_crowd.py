"""A thousand clients that wait on one gateway at once."""

import asyncio
from pathlib import Path

import httpx
import psutil

from tests.faults.accounts import check_completed_once, check_nothing_is_left
from tests.faults.parts import Parts, parts

CLIENTS = 1000
# What one gateway may take with all of them waiting: a bound of the product.
MOST_MEBIBYTES = 300.0


def resident_mebibytes(pid: int) -> float:
    return psutil.Process(pid).memory_info().rss / 2**20


def waiting(service: Parts) -> int:
    for line in service.http.get("/metrics").text.splitlines():
        if line.startswith("koala_waiting_clients "):
            return int(float(line.split()[1]))
    raise AssertionError("no such metric")


async def crowd(service: Parts) -> tuple[list[httpx.Response], float]:
    """All clients' answers, and what the gateway took while all of them waited."""
    assert service.gateway is not None
    limits = httpx.Limits(max_connections=CLIENTS)
    body = {"prompt": "a koala", "num_inference_steps": 1, "guidance_scale": 1}
    async with httpx.AsyncClient(timeout=500, limits=limits, trust_env=False) as http:
        tasks = [
            asyncio.create_task(http.post(service.generations, json=body)) for _ in range(CLIENTS)
        ]
        while await asyncio.to_thread(waiting, service) < CLIENTS:
            assert not any(task.done() for task in tasks), "somebody was sent away"
            await asyncio.sleep(0.2)
        took = resident_mebibytes(service.gateway.pid)
        for _ in range(2):
            service.start_worker()
        return await asyncio.gather(*tasks), took


def test_a_thousand_waiting_clients_fit_into_the_memory_of_one_gateway(tmp_path: Path) -> None:
    with parts(tmp_path, max_queued=CLIENTS) as service:
        assert service.gateway is not None
        empty = resident_mebibytes(service.gateway.pid)

        answers, full = asyncio.run(crowd(service))

        after = resident_mebibytes(service.gateway.pid)
        print(f"gateway: {empty:.0f} MiB empty, {full:.0f} with {CLIENTS}, {after:.0f} afterwards")
        assert [answer.text for answer in answers if answer.status_code != 200] == []
        jobs = [answer.json()["id"] for answer in answers]
        assert len(set(jobs)) == CLIENTS
        assert max(full, after) <= MOST_MEBIBYTES
        check_completed_once(service, jobs)
        check_nothing_is_left(service)
