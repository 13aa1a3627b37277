"""Names of everything this project keeps in Redis beside RQ's own keys."""

from dataclasses import dataclass
from typing import Final

# The only function a worker will run. Nothing is ever imported by this name: it is a label that
# the worker's allow-list compares with.
GENERATE: Final = "koala.generate"

JOB_PREFIX: Final = "rq:job:"


@dataclass(frozen=True, slots=True)
class Keys:
    """Redis keys of one queue."""

    queue: str

    @property
    def pending(self) -> str:
        """RQ's list of queued job ids, next one first."""
        return f"rq:queue:{self.queue}"

    @property
    def intermediate(self) -> str:
        """RQ's list of jobs popped but not yet claimed."""
        return f"{self.pending}:intermediate"

    @property
    def started(self) -> str:
        """RQ's registry of running executions (``job:execution`` by expiry)."""
        return f"rq:wip:{self.queue}"

    @property
    def index(self) -> str:
        """Sorted set of all known job ids by time of creation."""
        return f"koala:{self.queue}:jobs"

    def index_of(self, owner: str) -> str:
        """The same for the jobs of one owner."""
        return f"{self.index}:{owner}"

    @property
    def leases(self) -> str:
        """Sorted set of claimed job ids by the time their lease ends (ms)."""
        return f"koala:{self.queue}:leases"

    @property
    def unclaimed(self) -> str:
        """Sorted set of popped, unclaimed job ids by the time they were first seen so (ms)."""
        return f"koala:{self.queue}:unclaimed"

    @property
    def unsupported(self) -> str:
        """Sorted set of waiting job ids that are left to newer workers.

        By when one that understands them was last seen, or else when they were set aside (ms).
        """
        return f"koala:{self.queue}:unsupported"

    @property
    def deadlines(self) -> str:
        """Sorted set of waiting job ids by their deadline (ms)."""
        return f"koala:{self.queue}:deadlines"

    @property
    def fairness(self) -> str:
        """Hash of virtual time by priority class, and of each owner's last tag; see scripts."""
        return f"koala:{self.queue}:fairness"

    def waiting_of(self, owner: str) -> str:
        """Set of an owner's job ids in the queue."""
        return f"koala:{self.queue}:waiting:{owner}"

    def idempotency(self, owner: str, digest: str) -> str:
        """What an owner's ``Idempotency-Key`` of that digest stands for: job id and body."""
        return f"koala:{self.queue}:idempotency:{owner}:{digest}"

    @property
    def finished(self) -> str:
        """RQ's registry of finished jobs by the time they expire (s)."""
        return f"rq:finished:{self.queue}"

    @property
    def failed(self) -> str:
        """RQ's registry of failed jobs by the time they expire (s)."""
        return f"rq:failed:{self.queue}"

    @property
    def cancelled(self) -> str:
        """RQ's registry of cancelled jobs by the time they expire (s)."""
        return f"rq:canceled:{self.queue}"

    @property
    def images(self) -> str:
        """Sorted set of ``<images id> <n> <format>`` of completed jobs by their expiry (s)."""
        return f"koala:{self.queue}:images"

    @property
    def orphans(self) -> str:
        """Sorted set of names in the image store that no job tells of, by when first seen (s)."""
        return f"koala:{self.queue}:orphans"

    @property
    def workers(self) -> str:
        """Hash of worker name to what the worker says of itself."""
        return f"koala:{self.queue}:workers"

    @property
    def wake(self) -> str:
        """Pub/sub channel that carries ``<job id> <event type>``; data is in the streams."""
        return f"koala:{self.queue}:wake"

    @property
    def progress(self) -> str:
        """The same for steps and previews, which come too often for who only waits for an end."""
        return f"koala:{self.queue}:progress"

    @property
    def outbox(self) -> str:
        """Sorted set of ended jobs whose webhook is due, by the time of the next try (s)."""
        return f"koala:{self.queue}:outbox"

    @property
    def previews(self) -> str:
        """Sorted set of jobs with previews in their events, by when to look at them next (ms)."""
        return f"koala:{self.queue}:previews"

    def events(self, job_id: str) -> str:
        """The stream of one job's events."""
        return f"koala:{self.queue}:events:{job_id}"

    @staticmethod
    def job(job_id: str) -> str:
        """RQ's hash of one job."""
        return f"{JOB_PREFIX}{job_id}"

    @staticmethod
    def results(job_id: str) -> str:
        """RQ's stream of one job's results."""
        return f"rq:results:{job_id}"
