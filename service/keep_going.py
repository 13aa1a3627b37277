"""Work in the background that nobody awaits and that must not end."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Final

import redis
import structlog

log = structlog.get_logger()

FIRST_BACKOFF: Final = 0.1
_LONGEST_BACKOFF: Final = 5.0


async def keep_going(work: Callable[[], Awaitable[None]], who: str) -> None:
    """Do ``work`` again and again, at a slower pace while it goes wrong.

    Args:
        work: One round; it sets its own pace.
        who: Whose work it is, for the log.
    """
    backoff = FIRST_BACKOFF
    while True:
        began = time.monotonic()
        try:
            await work()
            backoff = FIRST_BACKOFF
            continue
        except redis.RedisError as error:
            log.warning(f"the {who} has lost the queue", error=str(error), retry_in=backoff)
        except Exception:
            # Nobody awaits this task: dying here would end the work in silence.
            log.exception(f"the {who} stumbled", retry_in=backoff)
        if time.monotonic() - began > _LONGEST_BACKOFF:
            backoff = FIRST_BACKOFF
        await asyncio.sleep(backoff)
        backoff = min(2 * backoff, _LONGEST_BACKOFF)
