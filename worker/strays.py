"""Jobs that are ours by the queue's books and that nobody draws: they are to go back."""

import structlog

from worker.leases import Leases
from worker.metrics import WorkerMetrics

log = structlog.get_logger()


class Strays:
    """Claims that led to nothing, kept until Redis has taken them back.

    Without that, the answer to a claim that gets lost would leave a job to the end of its lease,
    and cost it an attempt. May be used from several threads.

    Args:
        leases: Hands back.
        metrics: Where jobs that went back are counted.
    """

    def __init__(self, leases: Leases, metrics: WorkerMetrics) -> None:
        self._leases = leases
        self._metrics = metrics
        # Why, by job id and token.
        self._held: dict[tuple[str, str], str] = {}

    def add(self, job_id: str, token: str, reason: str) -> None:
        """Note a claim that was made, or may have been: one that was not is no harm."""
        self._held[job_id, token] = reason

    def hand_back(self) -> None:
        """Put the jobs back to the front of the queue, oldest claim first.

        Raises:
            redis.RedisError: Redis does not answer; a later call repeats it.
        """
        held = self._held.copy()
        for reason in dict.fromkeys(held.values()):
            pairs = [pair for pair, why in held.items() if why == reason]
            returned = self._leases.hand_back(pairs, reason)
            for pair in pairs:
                self._held.pop(pair, None)
            if returned:
                self._metrics.jobs_requeued.labels(reason).inc(len(returned))
                log.info("jobs go back to the queue", reason=reason, job_ids=returned)
