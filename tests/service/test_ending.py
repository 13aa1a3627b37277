"""How work in the background is ended."""

import asyncio

from service.ending import end


def test_a_cancellation_that_gets_lost_is_repeated() -> None:
    lost = 0

    async def deaf() -> None:
        nonlocal lost
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            lost += 1
        await asyncio.sleep(60)

    async def main() -> list[bool]:
        tasks = [asyncio.create_task(deaf()), asyncio.create_task(asyncio.sleep(60))]
        await asyncio.sleep(0)
        await end(*tasks)
        return [task.cancelled() for task in tasks]

    assert asyncio.run(main()) == [True, True]
    assert lost == 1


def test_work_that_has_failed_ends_without_a_word() -> None:
    async def broken() -> None:
        raise ValueError

    async def main() -> None:
        task = asyncio.create_task(broken())
        await asyncio.sleep(0)
        await end(task)
        assert isinstance(task.exception(), ValueError)

    asyncio.run(main())
