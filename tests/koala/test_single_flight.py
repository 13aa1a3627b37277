"""One call at a time, whose result its concurrent callers share."""

import asyncio

from koala.single_flight import SingleFlight


def test_a_call_that_is_done_is_begun_anew_before_its_callbacks_have_run() -> None:
    calls = 0

    async def call() -> int:
        nonlocal calls
        calls += 1
        return calls

    async def ask_twice() -> list[int]:
        flight = SingleFlight(call)
        first = asyncio.create_task(flight.result())
        await asyncio.sleep(0)
        # The event loop runs it right behind the call, before what is called back at its end.
        second = asyncio.create_task(flight.result())
        return await asyncio.gather(first, second)

    assert asyncio.run(ask_twice()) == [1, 2]
