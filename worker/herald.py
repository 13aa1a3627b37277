"""Tells how far jobs in flight are."""

import time
from collections.abc import Iterable, Mapping
from typing import Final

from koala.events import EventType, JobEvent, publish
from worker.fencing import FencedWorker
from worker.flight import Flight
from worker.link import Link

# Nobody follows steps faster than this, and each telling keeps the engine waiting for Redis.
PACE_SECONDS: Final = 0.1


class Herald:
    """Publishes steps, the latest of each job and in one round trip for all.

    Args:
        worker: In whose name.
        link: Knows whether Redis is there.
    """

    def __init__(self, worker: FencedWorker, link: Link) -> None:
        self._worker = worker
        self._link = link
        self._untold: set[str] = set()
        self._next = 0.0

    def note(self, job_ids: Iterable[str]) -> None:
        """These jobs got further."""
        self._untold.update(job_ids)

    def tell(self, flights: Mapping[str, Flight]) -> None:
        """Publish what is new of the jobs in flight, unless the last time was just now."""
        if not self._untold or time.monotonic() < self._next or not self._link.is_due:
            return
        self._next = time.monotonic() + PACE_SECONDS
        found = (flights.get(job_id) for job_id in self._untold)
        under_way = [flight for flight in found if flight is not None and flight.outcome is None]
        # A step that could not be told is not told later: the next one says more.
        self._untold.clear()
        worker = self._worker
        with self._link.attempt(), worker.connection.pipeline(transaction=False) as pipeline:
            for flight in under_way:
                data = {
                    "step": sum(flight.steps),
                    "steps": flight.spec.total_steps,
                    "image_steps": flight.steps,
                }
                event = JobEvent(EventType.STEP, data)
                publish(pipeline, worker.keys, flight.id, event, worker.event_ttl)
            pipeline.execute()
