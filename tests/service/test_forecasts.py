"""What forecasts see of jobs, and what they cost a gateway."""

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from koala.connections import connect_async
from koala.events import EventType, JobEvent
from koala.queue import JobQueue
from koala.settings import Settings
from koala.spec import JobRecord
from service.fleet import Fleet
from service.forecast import forecasts as module
from service.forecast.forecast import forecast
from service.forecast.forecasts import Forecasts
from service.forecast.situation import Situation
from tests.service.fakes import FakeWorker, Served
from tests.service.test_jobs import submit
from tests.service.test_waiting import post
from tests.support import spec

_SIZES = [{"width": 64, "height": 64, "max_rows": 4, "step_seconds": {1: 0.1}}]


def test_a_forecast_that_takes_long_is_not_made_for_each_job_that_comes(
    settings: Settings, worker: FakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, forecasts_made = 1000.0, 0

    def slow(situation: Situation) -> dict[str, float]:
        nonlocal now, forecasts_made
        now += 0.01
        forecasts_made += 1
        return forecast(situation)

    monkeypatch.setattr(module, "forecast", slow)
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now))
    worker.advertise(sizes=_SIZES)

    async def use(queue: JobQueue, foretell: Forecasts) -> list[float | None]:
        async def come(seed: int) -> JobRecord:
            return (await queue.submit(spec(seed=seed))).record

        first = await come(0)
        etas = [await foretell.eta(first)]
        etas += [await foretell.eta(await come(seed)) for seed in range(1, 10)]
        assert forecasts_made == 1
        assert foretell._look.situation.newcomers == 9
        nonlocal now
        now += 1.0
        etas.append(await foretell.eta(await come(10)))
        assert forecasts_made == 2
        assert foretell._look.situation.newcomers == 0
        return etas

    async def main() -> list[float | None]:
        connection = connect_async(settings)
        queue = JobQueue(connection, settings)
        try:
            foretell = Forecasts(connection, queue.keys, Fleet(connection, queue.keys))
            return await use(queue, foretell)
        finally:
            await connection.aclose()

    etas = asyncio.run(main())
    assert None not in etas
    assert etas[-1] > etas[0]


def test_the_gateway_serves_others_while_a_forecast_is_made(
    served: Served, worker: FakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, released = threading.Event(), threading.Event()

    def held_up(situation: Situation) -> dict[str, float]:
        begun.set()
        assert released.wait(120), "the gateway answered nothing meanwhile"
        return forecast(situation)

    monkeypatch.setattr(module, "forecast", held_up)
    worker.advertise(sizes=_SIZES)
    with ThreadPoolExecutor() as pool:
        # The answer to an asynchronous request has an ETA.
        asked = pool.submit(post, served, "respond-async")
        try:
            assert begun.wait(120)
            assert served.http.get("/healthz", timeout=120).status_code == 200
        finally:
            released.set()
        assert asked.result(120).json()["eta_seconds"] > 0


def test_jobs_that_come_while_a_forecast_is_made_get_an_eta_too(
    settings: Settings, worker: FakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, released = threading.Event(), threading.Event()

    def held_up(situation: Situation) -> dict[str, float]:
        begun.set()
        assert released.wait(120)
        return forecast(situation)

    monkeypatch.setattr(module, "forecast", held_up)
    worker.advertise(sizes=_SIZES)

    async def main() -> list[float | None]:
        connection = connect_async(settings)
        queue = JobQueue(connection, settings)
        foretell = Forecasts(connection, queue.keys, Fleet(connection, queue.keys))
        try:
            first = (await queue.submit(spec())).record
            asked = [asyncio.create_task(foretell.eta(first))]
            await asyncio.to_thread(begun.wait, 10)
            for seed in range(3):
                record = (await queue.submit(spec(seed=seed))).record
                asked.append(asyncio.create_task(foretell.eta(record)))
            await asyncio.sleep(0)
            released.set()
            return await asyncio.gather(*asked)
        finally:
            released.set()
            await connection.aclose()

    etas = asyncio.run(main())
    assert None not in etas
    assert len(etas) == 4


def eta(served: Served, job_id: str) -> float:
    # What was looked at before is not told again, however long the forecast from it took.
    served.gateway.forecasts._look.taken_at = float("-inf")
    served.gateway.forecasts._rests_until = float("-inf")
    told: float = served.http.get(f"/v1/jobs/{job_id}").json()["eta_seconds"]
    return told


def test_a_job_lasts_as_long_as_the_image_that_is_least_far(
    served: Served, worker: FakeWorker
) -> None:
    both_at_once = {"width": 64, "height": 64, "max_rows": 4, "step_seconds": {2: 100, 4: 100}}
    worker.advertise(sizes=[both_at_once])
    submit(served, n=2, num_inference_steps=10, previews=2)
    job_id = worker.take()
    assert eta(served, job_id) == pytest.approx(1000, abs=50)
    worker.step(job_id, 8, 2)
    assert eta(served, job_id) == pytest.approx(800, abs=50)
    worker.step(job_id, 10, 3)
    assert eta(served, job_id) == pytest.approx(700, abs=50)
    # A preview tells of both, too.
    [first, _] = worker.spec(job_id).preview_steps
    worker.preview(job_id, 0)
    assert eta(served, job_id) == pytest.approx(1000 - 100 * first, abs=50)
    worker.step(job_id, 10, 10)
    assert eta(served, job_id) < 50


def test_an_older_worker_that_tells_of_no_single_image_is_put_up_with(
    served: Served, worker: FakeWorker
) -> None:
    worker.advertise(sizes=[{"width": 64, "height": 64, "max_rows": 4, "step_seconds": {2: 100}}])
    submit(served, num_inference_steps=10)
    job_id = worker.take()
    worker.tell(job_id, JobEvent(EventType.STEP, {"step": 5, "steps": 10}))
    assert eta(served, job_id) == pytest.approx(1000, abs=50)


def test_who_returns_is_seen_from_what_ended_and_what_came(
    served: Served, worker: FakeWorker
) -> None:
    worker.advertise(sizes=_SIZES)
    for _ in range(4):
        submit(served)
    # Longer than what clocks may differ by.
    time.sleep(0.6)
    for _ in range(4):
        worker.finish(worker.take())
    waits = submit(served)
    assert eta(served, waits) > 0
    assert served.gateway.forecasts._look.situation.returning == pytest.approx(2 / 5)
