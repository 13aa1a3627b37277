"""Jobs that nobody waits for although they may be in the queue: cancelled as soon as that works."""

import asyncio
import time
from collections import OrderedDict
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
# A spoilt record stays spoilt; a full disk of Redis may take that long.
_GIVE_UP_SECONDS: Final = 600.0
# A Redis that stays away must not fill the gateway's memory; the oldest jobs are drawn for nothing.
_MOST_WAITING: Final = 10_000


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
        self._wishes: OrderedDict[str, _Wish] = OrderedDict()
        self._forgotten = 0
        self._wake = asyncio.Event()

    def add(self, job_id: str, *, if_abandoned: bool) -> None:
        """Cancel a job, soon.

        Args:
            job_id: A job that exists, or that may come to be: its admission was not answered.
            if_abandoned: Spare it if anybody beside its first client knows it.
        """
        self._wishes[job_id] = _Wish(time.monotonic(), if_abandoned)
        while len(self._wishes) > _MOST_WAITING:
            self._wishes.popitem(last=False)
            self._forgotten += 1
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
        if self._forgotten:
            log.warning("too many jobs wait for their withdrawal", forgotten=self._forgotten)
            self._forgotten = 0
        await self._cancel_all()
        if self._wishes:
            with suppress(TimeoutError):
                async with asyncio.timeout(_PAUSE_SECONDS):
                    await self._wake.wait()

    async def _cancel_all(self) -> None:
        refused: list[str] = []
        for job_id, wish in list(self._wishes.items()):
            age = time.monotonic() - wish.since
            try:
                outcome = await self._queue.cancel(job_id, if_abandoned=wish.if_abandoned)
            except JobNotFound:
                if age < _MAY_COME_SECONDS:
                    continue
            except redis.ResponseError as error:
                # A record of this job is spoilt, or Redis takes no writes: the others come next.
                refused.append(str(error))
                if age < _GIVE_UP_SECONDS:
                    continue
                log.error("a job was not withdrawn", job=job_id, error=str(error))
            else:
                log.info("a job without a client", job=job_id, outcome=outcome.value)
                self._metrics.jobs_abandoned.labels(outcome.value).inc()
            self._wishes.pop(job_id, None)
        if refused:
            log.warning("jobs cannot be withdrawn yet", jobs=len(refused), error=refused[0])
