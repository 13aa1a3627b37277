"""What forecasts cost a gateway."""

import asyncio
from types import SimpleNamespace

import pytest

from koala.connections import connect_async
from koala.queue import JobQueue
from koala.settings import Settings
from koala.spec import JobRecord
from service.fleet import Fleet
from service.forecast import forecasts as module
from service.forecast.forecast import forecast
from service.forecast.forecasts import Forecasts
from service.forecast.situation import Situation
from tests.service.fakes import FakeWorker
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
        nonlocal now
        now += 1.0
        etas.append(await foretell.eta(await come(10)))
        assert forecasts_made == 2
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
