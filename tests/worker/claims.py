"""What a worker does to the queue, without a loop: for workers that die in between."""

from rq.executions import Execution

from koala.clock import RedisClock
from koala.settings import Settings
from tests.worker.rig import MODEL, Rig
from worker.admission import Admission
from worker.fencing import FencedJob
from worker.inflight import InflightWorker
from worker.leases import Leases, Scripts
from worker.reaper import Reaper
from worker.strays import Strays


def admission(rig: Rig, worker: InflightWorker) -> Admission:
    """The admission of a worker."""
    strays = Strays(leases(rig), rig.metrics)
    return Admission(worker, leases(rig), strays, rig.settings, MODEL)


def leases(rig: Rig) -> Leases:
    """The leases of a worker."""
    return Leases(scripts(rig, rig.settings), rig.settings)


def reaper(rig: Rig, **changes: object) -> Reaper:
    """The reaper of another worker."""
    changed = rig.settings.model_copy(update=changes)
    return Reaper(scripts(rig, changed), changed)


def scripts(rig: Rig, settings: Settings) -> Scripts:
    """The scripts of a worker."""
    clock = RedisClock()
    clock.ask(rig.redis)
    return Scripts(rig.redis, settings, clock)


def pop(rig: Rig, worker: InflightWorker) -> FencedJob:
    """Take the next job off the list, unclaimed."""
    popped = worker.queue_class.dequeue_any(
        worker.queues,
        None,
        connection=worker.connection,
        job_class=worker.job_class,
        serializer=worker.serializer,
    )
    assert popped is not None
    assert isinstance(popped[0], FencedJob)
    return popped[0]


def claim(rig: Rig, worker: InflightWorker) -> tuple[FencedJob, Execution]:
    """Take the next job off the list and make it the worker's."""
    job = pop(rig, worker)
    execution = admission(rig, worker).claim(job)
    assert execution is not None
    return job, execution


def pending(rig: Rig) -> list[str]:
    """The queue, next one first."""
    return [job_id.decode() for job_id in rig.redis.lrange(rig.keys.pending, 0, -1)]
