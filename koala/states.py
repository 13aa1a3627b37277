"""The life cycle of a job, written down once.

RQ keeps the truth (``rq info`` and rq-dashboard read it); clients see these five states.
"""

from enum import StrEnum
from typing import Final

from rq.job import JobStatus


class JobState(StrEnum):
    """What a client sees of a job's life cycle."""

    QUEUED = "queued"
    IN_PROGRESS = "in_progress"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_terminal(self) -> bool:
        """Whether the job can change no more."""
        return not TRANSITIONS[self]


# IN_PROGRESS goes back to QUEUED when the worker that held the job died or was drained.
TRANSITIONS: Final[dict[JobState, frozenset[JobState]]] = {
    JobState.QUEUED: frozenset({JobState.IN_PROGRESS, JobState.FAILED, JobState.CANCELLED}),
    JobState.IN_PROGRESS: frozenset(
        {JobState.QUEUED, JobState.COMPLETED, JobState.FAILED, JobState.CANCELLED}
    ),
    JobState.COMPLETED: frozenset(),
    JobState.FAILED: frozenset(),
    JobState.CANCELLED: frozenset(),
}

_FROM_RQ: Final[dict[JobStatus, JobState]] = {
    JobStatus.CREATED: JobState.QUEUED,
    JobStatus.QUEUED: JobState.QUEUED,
    JobStatus.DEFERRED: JobState.QUEUED,
    JobStatus.SCHEDULED: JobState.QUEUED,
    JobStatus.RATE_LIMITED: JobState.QUEUED,
    JobStatus.READY_TO_ENQUEUE: JobState.QUEUED,
    JobStatus.STARTED: JobState.IN_PROGRESS,
    JobStatus.FINISHED: JobState.COMPLETED,
    JobStatus.FAILED: JobState.FAILED,
    JobStatus.STOPPED: JobState.CANCELLED,
    JobStatus.CANCELED: JobState.CANCELLED,
}


def from_rq(status: JobStatus) -> JobState:
    """The client's state for one of RQ's statuses."""
    return _FROM_RQ[status]
