"""Holds forecasts against what came: how far ETAs are from the truth is a metric."""

import asyncio
import time
from collections import OrderedDict
from typing import Final

import redis
import structlog

from koala.events import EventType
from koala.spec import JobRecord
from service.forecast.forecasts import Forecasts
from service.metrics import Metrics

log = structlog.get_logger()

# Judging more jobs than that a second would tell nothing more.
_PACE_SECONDS: Final = 0.05
_MOST_OPEN: Final = 4096
# Nobody reads an ETA of less.
_SHORTEST_SECONDS: Final = 1.0


class Ledger:
    """Notes the ETA of jobs as they are submitted and compares when they are completed.

    Args:
        forecasts: Foretells.
        metrics: Where the errors are observed.
        tasks: What goes on beside requests.
    """

    def __init__(
        self, forecasts: Forecasts, metrics: Metrics, tasks: set[asyncio.Task[None]]
    ) -> None:
        self._forecasts = forecasts
        self._metrics = metrics
        self._open: OrderedDict[str, tuple[float, float]] = OrderedDict()
        self._tasks = tasks
        self._next = 0.0

    def begin(self, record: JobRecord) -> None:
        """Note the ETA of a job that was just submitted, without keeping its client waiting."""
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + _PACE_SECONDS
        task = asyncio.create_task(self._note(record, now))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def end(self, job_id: str, event: EventType) -> None:
        """Compare, if the job was completed."""
        submitted_at, eta = self._open.pop(job_id, (0.0, 0.0))
        took = time.monotonic() - submitted_at
        if not submitted_at or event is not EventType.COMPLETED or took < _SHORTEST_SECONDS:
            return
        came = "later" if took > eta else "sooner"
        self._metrics.eta_error_ratio.labels(came).observe(abs(eta - took) / took)

    async def _note(self, record: JobRecord, now: float) -> None:
        try:
            eta = await self._forecasts.eta(record)
        except redis.RedisError as error:
            log.warning("no ETA for a job", job=record.id, error=str(error))
            return
        if eta is None:
            return
        self._open[record.id] = (now, eta)
        while len(self._open) > _MOST_OPEN:
            self._open.popitem(last=False)
