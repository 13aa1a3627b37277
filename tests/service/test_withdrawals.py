"""Jobs whose clients were told that they are not there: none of them is drawn."""

import asyncio
import signal
import subprocess
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from koala import embedded
from koala.connections import connect, connect_async
from koala.queue import JobQueue, new_job_id
from koala.settings import Settings
from service.metrics import Metrics
from service.withdrawals import Withdrawals
from tests.service.fakes import FakeWorker, Served, serving, wait_until
from tests.support import spec

GENERATIONS = "/v1/images/generations"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], Settings]]:
    """A Redis of this test's own, that can be frozen."""
    settings = Settings(data_dir=tmp_path)
    process = subprocess.Popen(embedded.prepare(settings))
    try:
        embedded.wait_until_ready(settings)
        yield process, settings
    finally:
        process.send_signal(signal.SIGCONT)
        process.terminate()
        process.wait(10)


@pytest.fixture
def frozen(
    server: tuple[subprocess.Popen[bytes], Settings],
) -> Iterator[tuple[subprocess.Popen[bytes], Served]]:
    """The same, frozen, and a gateway on it."""
    process, settings = server
    with serving(settings) as served:
        # The script and a connection are there already, so the next one arrives whole.
        served.http.post(
            GENERATIONS, json={"prompt": "a"}, headers={"Prefer": "respond-async"}
        ).raise_for_status()
        process.send_signal(signal.SIGSTOP)
        yield process, served


def jobs(settings: Settings) -> dict[str, str]:
    """The states of all jobs by what they were asked for."""
    with connect(settings) as client:
        worker = FakeWorker(settings)
        ids = [key.removeprefix(b"rq:job:").decode() for key in client.keys("rq:job:*")]
        states = {worker.spec(i).prompt: client.hget(f"rq:job:{i}", "status") for i in ids}
        worker.redis.close()
    return {prompt: (state or b"").decode() for prompt, state in states.items()}


@pytest.mark.parametrize("prefer", ["wait", "respond-async"])
def test_a_job_whose_admission_was_not_answered_is_withdrawn(
    frozen: tuple[subprocess.Popen[bytes], Served], prefer: str
) -> None:
    process, served = frozen
    response = served.http.post(
        GENERATIONS, json={"prompt": "mine"}, headers={"Prefer": prefer}, timeout=30
    )
    assert response.status_code == 503

    process.send_signal(signal.SIGCONT)

    # It did get in, when the server took in what it had been sent.
    wait_until(lambda: jobs(served.settings).get("mine") == "canceled")
    assert jobs(served.settings)["a"] == "queued"


def test_a_client_with_an_idempotency_key_finds_the_job_of_its_first_try(
    frozen: tuple[subprocess.Popen[bytes], Served],
) -> None:
    process, served = frozen
    headers = {"Prefer": "respond-async", "Idempotency-Key": "once"}
    body = {"prompt": "mine"}
    response = served.http.post(GENERATIONS, json=body, headers=headers, timeout=120)
    assert response.status_code == 503
    process.send_signal(signal.SIGCONT)
    wait_until(lambda: "mine" in jobs(served.settings))

    again = served.http.post(GENERATIONS, json=body, headers=headers)

    assert again.status_code == 202
    assert again.headers["idempotent-replayed"] == "true"
    assert again.json()["status"] == "queued"


def run(settings: Settings, use: Callable[[Withdrawals, JobQueue], Awaitable[None]]) -> None:
    async def main() -> None:
        connection = connect_async(settings)
        queue = JobQueue(connection, settings)
        withdrawals = Withdrawals(queue, Metrics())
        try:
            async with withdrawals.running():
                await use(withdrawals, queue)
        finally:
            await connection.aclose()

    asyncio.run(main())


async def state(queue: JobQueue, job_id: str) -> str:
    return (await queue.get(job_id)).state


def test_a_job_that_comes_after_its_withdrawal_is_cancelled_too(settings: Settings) -> None:
    async def use(withdrawals: Withdrawals, queue: JobQueue) -> None:
        job_id = new_job_id()
        withdrawals.add(job_id, if_abandoned=False)
        await asyncio.sleep(0.2)
        await queue.submit(spec(), job_id)
        async with asyncio.timeout(120):
            while await state(queue, job_id) != "cancelled":
                await asyncio.sleep(0.05)

    run(settings, use)


def test_what_is_not_withdrawn_when_the_gateway_ends_is_tried_once_more(
    settings: Settings,
) -> None:
    ids: list[str] = []

    async def use(withdrawals: Withdrawals, queue: JobQueue) -> None:
        ids.append((await queue.submit(spec())).record.id)
        withdrawals.add(ids[0], if_abandoned=True)

    run(settings, use)
    with connect(settings) as client:
        assert client.hget(f"rq:job:{ids[0]}", "status") == b"canceled"


def test_a_job_whose_record_is_spoilt_keeps_no_other_from_being_withdrawn(
    settings: Settings,
) -> None:
    async def use(withdrawals: Withdrawals, queue: JobQueue) -> None:
        spoilt, mine = new_job_id(), (await queue.submit(spec())).record.id
        await queue._redis.set(f"rq:job:{spoilt}", "no hash")
        for job_id in (spoilt, mine):
            withdrawals.add(job_id, if_abandoned=False)
        async with asyncio.timeout(120):
            while await state(queue, mine) != "cancelled":
                await asyncio.sleep(0.05)

    run(settings, use)


def test_jobs_that_wait_for_their_withdrawal_are_bounded_and_the_newest_are_kept(
    settings: Settings,
) -> None:
    async def main() -> None:
        connection = connect_async(settings)
        queue = JobQueue(connection, settings)
        # Not running, as if Redis gave no answer.
        withdrawals = Withdrawals(queue, Metrics())
        for number in range(30_000):
            withdrawals.add(f"job_{number}", if_abandoned=False)
        waiting = list(withdrawals._wishes)
        await connection.aclose()
        assert waiting == [f"job_{number}" for number in range(20_000, 30_000)]

    asyncio.run(main())


def test_a_job_that_somebody_else_follows_is_spared(settings: Settings) -> None:
    async def use(withdrawals: Withdrawals, queue: JobQueue) -> None:
        kept, mine = [(await queue.submit(spec())).record.id for _ in range(2)]
        await queue.keep(kept)
        for job_id in (kept, mine):
            withdrawals.add(job_id, if_abandoned=True)
        async with asyncio.timeout(120):
            while await state(queue, mine) != "cancelled":
                await asyncio.sleep(0.05)
        assert await state(queue, kept) == "queued"

    run(settings, use)
