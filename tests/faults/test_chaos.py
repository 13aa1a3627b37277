"""Everything at once: killed workers, a killed Redis, a replaced gateway, and no job lost."""

import asyncio
import random
import time
from pathlib import Path
from typing import Any

import httpx

from tests.faults.accounts import check_completed_once, check_nothing_is_left
from tests.faults.parts import Parts, eventually, parts

JOBS = 300
KILLS = 10
SEED = 20_24
CLIENTS = 60


def request(number: int) -> dict[str, Any]:
    draw = random.Random(SEED + number)
    return {
        "prompt": "a koala on a blue background",
        "seed": 1000 * number,
        "num_inference_steps": draw.randint(4, 10),
        "n": draw.choice([1, 1, 1, 2, 3]),
        "guidance_scale": draw.choice([1, 1, 3.5]),
    }


async def accepted(http: httpx.AsyncClient, number: int) -> str:
    """Send a request until it is accepted, every second one as a client that waits; the job's id.

    Accepted is what has a job's id in its answer: the image, the job, or where the job is.
    """
    headers = {"Prefer": "respond-async"} if number % 2 else {}
    while True:
        try:
            response = await http.post(
                "/v1/images/generations", json=request(number), headers=headers
            )
        except httpx.TransportError:
            # The gateway is being replaced.
            await asyncio.sleep(0.2)
            continue
        if "x-koala-job-id" in response.headers:
            assert response.status_code in (200, 202, 503), response.text
            return response.headers["x-koala-job-id"]
        assert response.status_code in (429, 503), response.text
        assert "retry-after" in response.headers
        await asyncio.sleep(0.2)


async def send_all(service: Parts) -> list[str]:
    places = asyncio.Semaphore(CLIENTS)
    limits = httpx.Limits(max_connections=CLIENTS, max_keepalive_connections=CLIENTS)
    async with httpx.AsyncClient(
        base_url=service.base_url, timeout=300, limits=limits, trust_env=False
    ) as http:

        async def send(number: int) -> str:
            async with places:
                return await accepted(http, number)

        return await asyncio.gather(*(send(number) for number in range(JOBS)))


class Havoc:
    """Ten killed workers, one killed Redis and one stopped gateway, spread over the run.

    Moments are numbers of completed jobs, so that work goes on at each, however slow the machine.
    """

    def __init__(self, service: Parts) -> None:
        self._service = service
        self._draw = random.Random(SEED)
        moments = sorted(self._draw.sample(range(5, JOBS - 60), KILLS + 2))
        deeds = [self._kill_a_worker] * KILLS
        deeds.insert(4, self._restart_redis)
        deeds.insert(8, self._restart_the_gateway)
        self._plan = list(zip(moments, deeds, strict=True))
        self.kills = 0

    def wreak(self) -> None:
        """Carry the plan out; returns at its end."""
        for moment, deed in self._plan:
            deadline = time.monotonic() + 300
            while self._completed() < moment:
                assert time.monotonic() < deadline, "the work came to a halt"
                time.sleep(0.01)
            time.sleep(self._draw.uniform(0, 0.3))
            deed()

    def _completed(self) -> int:
        return len(self._service.images)

    def _kill_a_worker(self) -> None:
        for worker in self._service.workers:
            assert worker.is_alive(), "it died by itself"
        self._service.kill_worker(self._draw.choice(self._service.workers))
        self._service.start_worker()
        self.kills += 1

    def _restart_redis(self) -> None:
        # One that still starts would end: it has nothing to lose, and its supervisor begins anew.
        for worker in self._service.workers:
            self._service.wait_until_started(worker)
        self._service.kill_valkey()
        self._service.start_valkey()

    def _restart_the_gateway(self) -> None:
        assert self._service.stop_gateway() == 0
        self._service.start_gateway()


def test_every_accepted_job_completes_exactly_once_whatever_is_killed(tmp_path: Path) -> None:
    settings = {
        "lease_seconds": 2,
        "heartbeat_seconds": 0.5,
        "drain_seconds": 2,
        # All kills may hit the same job by chance; poison is another test.
        "max_attempts": KILLS + 1,
        "max_queued": JOBS,
    }
    with parts(tmp_path, worker_count=2, **settings) as service:

        async def run() -> list[str]:
            havoc = Havoc(service)
            sent, _ = await asyncio.gather(send_all(service), asyncio.to_thread(havoc.wreak))
            assert havoc.kills == KILLS
            return sent

        job_ids = asyncio.run(run())
        assert len(set(job_ids)) == JOBS
        # Those whose answer was lost on the way have to end like all others.
        admitted = [x.decode() for x in service.rig.redis.zrange(service.rig.keys.index, 0, -1)]
        eventually(lambda: service.have_completed(admitted))
        assert set(job_ids) <= set(admitted)
        attempts = sum(record.attempts for record in service.records(admitted).values())
        assert attempts > 0, "no kill hit a job"
        check_completed_once(service, admitted)
        check_nothing_is_left(service)
        print(f"{len(admitted)} jobs, {attempts} of their runs died")
