"""One call at a time of an async function, shared by all who ask for its result meanwhile."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class SingleFlight(Generic[T]):
    """Runs a call once for all concurrent callers, its error included.

    A caller that is cancelled does not end the call for the others.

    Args:
        call: What to run; it starts with the first caller that finds no call under way.
    """

    def __init__(self, call: Callable[[], Awaitable[T]]) -> None:
        self._call = call
        self._task: asyncio.Task[T] | None = None

    async def result(self) -> T:
        """The result of the call under way, or of a new one.

        Raises:
            Exception: What the call raises; every caller that waited for it gets the same.
        """
        # One that is done is not under way, though `_end` may not have been called yet: a caller
        # that asks until something has changed would get its result at once, and never yield.
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run())
            self._task.add_done_callback(self._end)
        return await asyncio.shield(self._task)

    async def _run(self) -> T:
        return await self._call()

    def _end(self, task: asyncio.Task[T]) -> None:
        if self._task is task:
            self._task = None
        if not task.cancelled():
            # Read here, too: asyncio reports an error that no caller is left to take.
            task.exception()
