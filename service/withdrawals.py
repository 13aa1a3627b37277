"""Jobs that nobody waits for although they may be in the queue: cancelled as soon as that works."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Final

import redis
import structlog

from koala.errors import JobNotFound
from koala.queue import JobQueue
from service.ending import end
from service.keep_going import keep_going
from service.metrics import Metrics

log = structlog.get_logger()

_PAUSE_SECONDS: Final = 1.0
# A stalled Redis may still take in what it was sent before.
_MAY_COME_SECONDS: Final = 5.0


@dataclass(frozen=True, slots=True)
class _Wish:
    since: float
    if_abandoned: bool


class Withdrawals:
    """Cancels jobs, and does not give up where Redis does not answer.

    Args:
        queue: Cancels.
        metrics: Where abandoned jobs are counted.
    """

    def __init__(self, queue: JobQueue, metrics: Metrics) -> None:
        self._queue = queue
        self._metrics = metrics
        self._wishes: dict[str, _Wish] = {}
        self._wake = asyncio.Event()

    def add(self, job_id: str, *, if_abandoned: bool) -> None:
        """Cancel a job, soon.

        Args:
            job_id: A job that exists, or that may come to be: its admission was not answered.
            if_abandoned: Spare it if anybody beside its first client knows it.
        """
        self._wishes[job_id] = _Wish(time.monotonic(), if_abandoned)
        self._wake.set()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Cancel within the block; what is left at its end is tried once more."""
        task = asyncio.create_task(keep_going(self._round, "withdrawal of jobs"))
        try:
            yield
        finally:
            await end(task)
            try:
                await self._cancel_all()
            except redis.RedisError as error:
                log.warning("jobs were not withdrawn", jobs=list(self._wishes), error=str(error))

    async def _round(self) -> None:
        if not self._wishes:
            await self._wake.wait()
        self._wake.clear()
        await self._cancel_all()
        if self._wishes:
            with suppress(TimeoutError):
                async with asyncio.timeout(_PAUSE_SECONDS):
                    await self._wake.wait()

    async def _cancel_all(self) -> None:
        for job_id, wish in list(self._wishes.items()):
            try:
                outcome = await self._queue.cancel(job_id, if_abandoned=wish.if_abandoned)
            except JobNotFound:
                if time.monotonic() - wish.since < _MAY_COME_SECONDS:
                    continue
            else:
                log.info("a job without a client", job=job_id, outcome=outcome.value)
                self._metrics.jobs_abandoned.labels(outcome.value).inc()
            self._wishes.pop(job_id, None)
