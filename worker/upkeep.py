"""What a worker does beside drawing: signs of life, its own account, and the reaper."""

import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Final, cast

import structlog
from redis.exceptions import RedisError
from rq import worker_registration
from rq.exceptions import NoSuchJobError

from koala import __version__
from koala.events import EventType, JobEvent
from koala.settings import Settings
from koala.spec import JobError
from koala.workers import WorkerAd, advertise, forget_dead, withdraw
from worker.fencing import AlreadyEnded, FencedJob, FencedWorker, LeaseLost
from worker.flight import Flight
from worker.leases import Leases
from worker.metrics import WorkerMetrics
from worker.reaper import Reaper
from worker.strays import Strays
from worker.unsupported import SUPPORT_SECONDS, UnsupportedJobs

log = structlog.get_logger()

# The loop itself ends jobs that run over their time. One that is still there so much later sits in
# a step that never ends, and holding it any longer would keep it from the other workers.
HANG_GRACE: Final = 60.0

# An account outlives one missed beat.
_AD_BEATS: Final = 3


class Upkeep:
    """One beat's work. Runs on the beat's thread, beside the loop.

    Args:
        worker: Whose upkeep it is.
        leases: Renews what is in flight.
        strays: Hands back what was claimed and is not in flight.
        unsupported: Looks after what was set aside for newer workers.
        reaper: Finds what nobody works on.
        settings: Pace and limits.
        flights: The jobs in flight; only read here.
        lost: Told of each lost lease, as job id and token.
        stop: Told of each job that somebody wants cancelled.
        account: Fills in what the worker says of itself, given its name and times.
        metrics: Where requeued and late jobs are counted.
    """

    def __init__(
        self,
        worker: FencedWorker,
        leases: Leases,
        strays: Strays,
        unsupported: UnsupportedJobs,
        reaper: Reaper,
        settings: Settings,
        flights: Mapping[str, Flight],
        lost: Callable[[tuple[str, str]], None],
        stop: Callable[[str], None],
        account: Callable[..., WorkerAd],
        metrics: WorkerMetrics,
    ) -> None:
        self._worker = worker
        self._leases = leases
        self._strays = strays
        self._unsupported = unsupported
        self._settings = settings
        self._flights = flights
        self._lost = lost
        self._stop = stop
        self._account = account
        self._metrics = metrics
        self._reaper = reaper
        self._started_at = worker.clock.now()
        self._blind_after = _seconds_until_leases_may_lapse(settings)
        self._renewed_at = time.monotonic()
        self._reap_from = 0.0

    def beat(self) -> None:
        """Everything, most urgent first.

        Raises:
            redis.RedisError: Redis does not answer; the next beat repeats it all.
        """
        self.renew()
        self._worker.clock.ask(self._worker.connection)
        self._strays.hand_back()
        self._look_back()
        self.show_life()
        if time.monotonic() >= self._reap_from:
            self.reap()

    def _look_back(self) -> None:
        """Let a lease pass without reaping after a time in which no lease could be renewed.

        When Redis was away, the leases of all workers ran out; whoever comes back first must not
        take the jobs of those who are about to.
        """
        now = time.monotonic()
        if now - self._renewed_at > self._blind_after:
            self._reap_from = now + self._settings.lease_seconds
        self._renewed_at = now

    @property
    def hung(self) -> list[str]:
        """Ids of jobs that sit in a step which does not end."""
        return [flight.id for flight in list(self._flights.values()) if _hangs(flight)]

    def renew(self) -> None:
        """Keep the leases of all jobs in flight, those of hung ones excepted."""
        flights = list(self._flights.values())
        held = {flight.id: flight.token for flight in flights if not _hangs(flight)}
        renewal = self._leases.renew(list(held.items()))
        for job_id in renewal.lost:
            self._lost((job_id, held[job_id]))
        for job_id in renewal.unwanted:
            self._stop(job_id)

    def show_life(self) -> None:
        """Renew RQ's worker entry, anew if it expired meanwhile, and the worker's account."""
        worker = self._worker
        with worker.connection.pipeline() as pipeline:
            worker.heartbeat(pipeline=pipeline)
            [created, *_] = pipeline.execute()
            if created:
                pipeline.hset(worker.key, mapping=worker.serialize())
                worker_registration.register(worker, pipeline)
                pipeline.execute()
        self.advertise()

    def advertise(self) -> None:
        """Write the worker's account of itself."""
        beats = timedelta(seconds=_AD_BEATS * self._settings.heartbeat_seconds)
        ad = self._account(
            name=self._worker.name,
            version=__version__,
            started_at=self._started_at,
            expires_at=self._worker.clock.now() + beats,
            jobs_in_flight=len(self._flights),
        )
        advertise(self._worker.connection, self._worker.keys, ad)

    def withdraw(self) -> None:
        """Remove the worker's account."""
        withdraw(self._worker.connection, self._worker.keys, self._worker.name)

    def reap(self) -> None:
        """Put back what nobody works on; fail what keeps killing workers."""
        reaped = self._reaper.reap()
        for reason, ids in (("worker_died", reaped.requeued), ("never_claimed", reaped.put_back)):
            if ids:
                self._metrics.jobs_requeued.labels(reason).inc(len(ids))
                log.warning("jobs go back to the queue", reason=reason, job_ids=ids)
        for job_id, attempts in reaped.poisoned.items():
            times = "worker was" if attempts == 1 else "workers were"
            message = f"The job was given up: {attempts} {times} killed while running it."
            self._bury(job_id, reaped.token, JobError(message=message, code="worker_died"))
        for job_id in reaped.late:
            error = JobError(
                message="The deadline passed while the job waited.", code="deadline_exceeded"
            )
            job = self._bury(job_id, reaped.token, error)
            if job is not None:
                self._metrics.count_wait(job, self._worker.clock.now())
        token, overdue = self._unsupported.look()
        for job_id, lacking in overdue.items():
            message = (
                f"The job asks for what no worker here knows: {lacking}. Workers of the version "
                f"that took it in did not come within {SUPPORT_SECONDS // 60} minutes."
            )
            self._bury(job_id, token, JobError(message=message, code="unsupported_job"))
        forget_dead(self._worker.connection, self._worker.keys)

    def _bury(self, job_id: str, token: str, error: JobError) -> FencedJob | None:
        """Fail a job that no worker runs; ``None`` where it ended otherwise."""
        worker = self._worker
        try:
            job = self._fetch(job_id)
            job.forget_hooks()
            job.token = token
            job.last_event = JobEvent(EventType.FAILED, {"error": error.model_dump()})
            worker.fail(job, None, error.message)
        except (NoSuchJobError, LeaseLost, AlreadyEnded) as outcome:
            log.warning("a job could not be given up", job_id=job_id, outcome=repr(outcome))
            return None
        self._metrics.jobs_finished.labels("failed", error.code).inc()
        log.warning("a waiting job was given up", job_id=job_id, code=error.code)
        return job

    def _fetch(self, job_id: str) -> FencedJob:
        worker = self._worker
        try:
            return cast(FencedJob, FencedJob.fetch(job_id, worker.connection, worker.serializer))
        except (RedisError, NoSuchJobError):
            raise
        except Exception as error:
            # One that cannot be read must not keep the others from being given up.
            log.warning("a job to give up cannot be read", job_id=job_id, error=repr(error))
            return FencedJob.empty(job_id, worker.connection, worker.queues[0].name)


def _hangs(flight: Flight) -> bool:
    return flight.outcome is None and flight.overtime >= HANG_GRACE


def _seconds_until_leases_may_lapse(settings: Settings) -> float:
    # A lease was renewed up to a heartbeat before the outage began. A late beat is no outage.
    heartbeat = settings.heartbeat_seconds
    return max(settings.lease_seconds - heartbeat, 1.5 * heartbeat)
