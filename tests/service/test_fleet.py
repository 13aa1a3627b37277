"""What the gateway knows of the live workers."""

import asyncio

import pytest
import redis

from koala.connections import connect, connect_async
from koala.keys import Keys
from koala.settings import Settings
from service.fleet import Fleet
from tests.service.fakes import FakeWorker


def reads(settings: Settings) -> int:
    """How often the server has read the workers' accounts."""
    with connect(settings) as client:
        stats = client.info("commandstats")
    return int(stats.get("cmdstat_hgetall", {"calls": 0})["calls"])


def test_however_many_ask_at_once_the_workers_are_read_once(
    settings: Settings, worker: FakeWorker
) -> None:
    worker.advertise()

    async def main() -> list[bool]:
        connection = connect_async(settings)
        fleet = Fleet(connection, Keys(settings.queue))
        try:
            return await asyncio.gather(*(fleet.serves("koala-demo") for _ in range(500)))
        finally:
            await connection.aclose()

    before = reads(settings)
    assert asyncio.run(main()) == [True] * 500
    assert reads(settings) - before == 1


def test_all_who_wait_for_a_read_that_fails_are_told_and_the_next_reads_anew(
    settings: Settings, worker: FakeWorker
) -> None:
    worker.advertise()
    keys = Keys(settings.queue)

    async def main() -> None:
        connection = connect_async(settings)
        fleet = Fleet(connection, keys)
        await connection.rename(keys.workers, "aside")
        await connection.set(keys.workers, "no hash")
        try:
            asked = (fleet.alive() for _ in range(20))
            answers = await asyncio.gather(*asked, return_exceptions=True)
            assert {type(answer) for answer in answers} == {redis.ResponseError}
            await connection.rename("aside", keys.workers)
            assert [ad.name for ad in await fleet.alive()] == ["fake"]
        finally:
            await connection.aclose()

    asyncio.run(main())


def test_one_who_asks_no_longer_does_not_end_the_read_of_the_others(
    settings: Settings, worker: FakeWorker
) -> None:
    worker.advertise()

    async def main() -> None:
        connection = connect_async(settings)
        fleet = Fleet(connection, Keys(settings.queue))
        try:
            first = asyncio.create_task(fleet.alive())
            second = asyncio.create_task(fleet.alive())
            await asyncio.sleep(0)
            first.cancel()
            assert [ad.name for ad in await second] == ["fake"]
            with pytest.raises(asyncio.CancelledError):
                await first
        finally:
            await connection.aclose()

    asyncio.run(main())
