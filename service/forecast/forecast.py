"""Runs the queue and the workers ahead of time.

The same rules as the engine's, but without its single steps: between two moments at which an image
is done or begun nothing changes, so the clock jumps from one to the next.
"""

import math
from collections import deque
from statistics import median
from typing import Final

from service.forecast.lane import LaneAhead
from service.forecast.situation import Situation, Work

# Who comes next matters to those who are served soon: so many futures are tried.
_FUTURES: Final = 5
# Behind so long a queue it matters little, and a future takes long to run.
_LONG_QUEUE: Final = 64
# Multiples of it, less their whole parts, lie evenly between 0 and 1 from whichever one on: a
# Kronecker sequence. Jobs picked that way from the sorted ones are a fair mixture at any time.
_GOLDEN: Final = (math.sqrt(5) - 1) / 2


def forecast(situation: Situation) -> dict[str, float]:
    """Seconds from now until the end of each job that waits or is held, by job id.

    What lies behind the queue's end matters too: new jobs keep batches full. They are taken to go
    on coming as fast as they came lately, and at least as many as of those who are served come
    back. They look like the latest ones, in several orders: the median counts. Empty if no live
    worker has a pace.
    """
    if not situation.lanes:
        return {}
    futures = _FUTURES if situation.arrivals and len(situation.queue) < _LONG_QUEUE else 1
    runs = [_Ahead(situation, number / futures).run() for number in range(futures)]
    return {job_id: median(run[job_id] for run in runs) for job_id in runs[0]}


class _Ahead:
    """One future: ``phase``, 0 to 1, tells which."""

    def __init__(self, situation: Situation, phase: float) -> None:
        self._lanes = [LaneAhead(lane) for lane in situation.lanes]
        self._queue = deque(situation.queue)
        self._rate = situation.arrivals_per_second
        self._arrivals = sorted(situation.arrivals, key=_effort)
        self._phase = phase
        self._returning = situation.returning
        # Ends that add up to somebody who returns.
        self._served = phase
        # Of those to come; and when the first ones come who return.
        self._taken = situation.newcomers
        self._returns: list[float] = []
        self._open = {work.job_id for work in situation.queue}
        self._open.update(work.job_id for lane in situation.lanes for work in lane.held)

    def run(self) -> dict[str, float]:
        ends: dict[str, float] = {}
        self._hand_out(0.0)
        while self._open:
            lane = min(self._lanes, key=lambda lane: lane.next_event)
            if (moment := self._next_use) < lane.next_event:
                self._hand_out(moment)
                continue
            for job_id, end in lane.pass_event():
                self._end(lane.clock)
                if job_id in self._open:
                    self._open.remove(job_id)
                    ends[job_id] = end
            self._hand_out(lane.clock)
        return ends

    def _end(self, now: float) -> None:
        self._served += self._returning
        if self._served >= 1:
            self._served -= 1
            self._returns.append(now)

    def _hand_out(self, now: float) -> None:
        """Give what waits to those who have room, whoever has most of it first."""
        while True:
            roomy = [lane for lane in self._lanes if lane.clock <= now and lane.has_room]
            work = self._next_work(now) if roomy else None
            if work is None:
                return
            lane = min(roomy, key=lambda lane: lane.load)
            lane.take(work, now)

    def _next_work(self, now: float) -> Work | None:
        if self._queue:
            return self._queue.popleft()
        if self._arrival <= now:
            self._taken += 1
            place = (self._phase + self._taken * _GOLDEN) % 1
            return self._arrivals[int(place * len(self._arrivals))]
        return None

    @property
    def _arrival(self) -> float:
        """When the next job comes that is not there yet."""
        if not self._arrivals:
            return math.inf
        by_rate = (self._taken + 1) / self._rate if self._rate else math.inf
        is_next_known = self._taken < len(self._returns)
        return min(by_rate, self._returns[self._taken] if is_next_known else math.inf)

    @property
    def _next_use(self) -> float:
        """When somebody has room for it, if nobody is before it; infinity: not yet known."""
        if self._queue:
            return math.inf
        soonest = min((lane.clock for lane in self._lanes if lane.has_room), default=math.inf)
        return max(self._arrival, soonest)


def _effort(work: Work) -> tuple[int, float]:
    """By size first: only jobs of one size share their calls."""
    width, height = work.size
    return width * height, work.rows * sum(work.calls)
