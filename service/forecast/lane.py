"""One worker ahead of time."""

import heapq
import math
from dataclasses import dataclass, field
from itertools import count
from typing import Final

from service.forecast.pace import Size
from service.forecast.situation import Lane, Work

_EPSILON: Final = 1e-9

# Steps are told of ten times a second at most.
_TELLING_SECONDS: Final = 0.1


@dataclass(slots=True)
class _Job:
    id: str
    images_left: int


@dataclass(slots=True)
class _Image:
    job: _Job
    size: Size
    rows: int
    calls: float


@dataclass(slots=True)
class _Group:
    """Images of one size, which advance together; ``ends`` is by the calls done at their end."""

    rows: int = 0
    calls: float = 0.0
    ends: list[tuple[float, int, _Image]] = field(default_factory=list)


class LaneAhead:
    """A worker's batch on a clock of its own, in seconds from now."""

    def __init__(self, lane: Lane) -> None:
        self.clock = 0.0
        self._pace = lane.pace
        self._groups: dict[Size, _Group] = {}
        self._waiting: list[_Image] = []
        self._order = count()
        for work in lane.held:
            self._add(work)
        self._admit()
        self._catch_up(lane.held)

    @property
    def has_room(self) -> bool:
        """Whether the engine would take one more job: its own rule."""
        rows = {size: group.rows for size, group in self._groups.items()}
        for image in self._waiting:
            taken = rows.get(image.size, 0)
            if taken and taken + image.rows > self._pace.cap(image.size):
                return False
            rows[image.size] = taken + image.rows
        return sum(rows[size] / self._pace.cap(size) for size in rows) < max(1, len(rows))

    @property
    def load(self) -> float:
        """Rows of the batch as parts of what fits."""
        return sum(group.rows / self._pace.cap(size) for size, group in self._groups.items())

    @property
    def next_event(self) -> float:
        """When the next image has done its last step; infinity where there is none."""
        share = len(self._groups)
        return min(
            (
                self.clock + max(0.0, group.ends[0][0] - group.calls) * share * self._cost(size)
                for size, group in self._groups.items()
            ),
            default=math.inf,
        )

    def take(self, work: Work, now: float) -> None:
        """Take a job in."""
        self._advance(now)
        self._add(work)
        self._admit()

    def pass_event(self) -> list[tuple[str, float]]:
        """Go on to the next event; the jobs that end with it, and when."""
        self._advance(self.next_event)
        ended = []
        for size, group in list(self._groups.items()):
            while group.ends and group.ends[0][0] <= group.calls + _EPSILON:
                _, _, image = heapq.heappop(group.ends)
                group.rows -= image.rows
                # While one decodes, nobody steps.
                self.clock += self._pace.decode_seconds(size)
                image.job.images_left -= 1
                if not image.job.images_left:
                    ended.append((image.job.id, self.clock + self._pace.store_seconds))
            if not group.ends:
                del self._groups[size]
        self._admit()
        return ended

    def _advance(self, now: float) -> None:
        """Let all groups step until ``now``, each for an equal share of the time."""
        seconds = now - self.clock
        if seconds <= 0:
            return
        share = len(self._groups)
        for size, group in self._groups.items():
            group.calls += seconds / (share * self._cost(size))
        self.clock = now

    def _catch_up(self, held: tuple[Work, ...]) -> None:
        """Count the part of a step that is done since the last one was told of."""
        share = len(self._groups)
        for size, group in self._groups.items():
            cost = share * self._cost(size)
            age = min((work.age for work in held if work.size == size), default=0.0)
            group.calls = min(age, max(cost, _TELLING_SECONDS)) / cost

    def _cost(self, size: Size) -> float:
        return self._pace.step_seconds(size, self._groups[size].rows)

    def _add(self, work: Work) -> None:
        job = _Job(work.job_id, len(work.calls))
        for calls in work.calls:
            self._waiting.append(_Image(job, work.size, work.rows, calls))

    def _admit(self) -> None:
        """Let into the batch what fits; no image overtakes another of its size."""
        full: set[Size] = set()
        waiting, self._waiting = self._waiting, []
        for image in waiting:
            group = self._groups.get(image.size)
            if image.size in full or (
                group is not None and group.rows + image.rows > self._pace.cap(image.size)
            ):
                full.add(image.size)
                self._waiting.append(image)
                continue
            group = self._groups.setdefault(image.size, _Group())
            group.rows += image.rows
            heapq.heappush(group.ends, (group.calls + image.calls, next(self._order), image))
