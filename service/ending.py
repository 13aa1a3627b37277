"""How work in the background is ended."""

import asyncio
from typing import Any, Final

_PATIENCE_SECONDS: Final = 1.0


async def end(*tasks: asyncio.Task[Any]) -> None:
    """Cancel tasks and return when they have ended.

    A cancellation can get lost in a library that takes it for its own, and a process that waits
    for such a task never ends: it is repeated. So it is for tasks that have nothing to tidy up.
    """
    pending = set(tasks)
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=_PATIENCE_SECONDS)
