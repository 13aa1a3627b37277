"""Boarding: from a popped job to a flight, or back into the queue."""

from collections.abc import Sequence

from rq.executions import Execution

from worker.admission import NOT_BEGUN, Admission, InvalidJob, UnsupportedJob
from worker.fencing import FencedJob
from worker.flight import Flight
from worker.landing import Landing
from worker.link import Link
from worker.strays import Strays
from worker.unsupported import UnsupportedJobs


class Boarding:
    """Claims jobs, refuses what is none of ours, and sends back what cannot fly now.

    Args:
        link: Knows whether Redis is there; the loop's.
        admission: Claims and reads.
        landing: Fails what is refused.
        strays: Keeps what is to go back until it has.
        unsupported: Sets aside what is for newer workers.
    """

    def __init__(
        self,
        link: Link,
        admission: Admission,
        landing: Landing,
        strays: Strays,
        unsupported: UnsupportedJobs,
    ) -> None:
        self._link = link
        self._admission = admission
        self._landing = landing
        self._strays = strays
        self._unsupported = unsupported
        # Whether everybody in flight has to land before the next one boards.
        self.is_closed = False

    def take(self, job: FencedJob, *, is_alone: bool) -> Flight | None:
        """The flight of a popped job; ``None`` if it does not come to that.

        Args:
            job: As it was popped.
            is_alone: Nothing else is in flight.
        """
        spec, fault = None, ""
        try:
            spec = self._admission.read(job)
        except UnsupportedJob as error:
            # Before the claim: it is no attempt, and nothing has been told of it.
            with self._link.attempt():
                self._unsupported.set_aside(job.id, str(error))
            return None
        except InvalidJob as error:
            fault = str(error)
        execution = None
        with self._link.attempt():
            execution = self._admission.claim(job)
        if execution is None:
            return None
        if spec is None:
            self._refuse(job, execution, fault)
            return None
        if self._admission.is_suspect(job):
            # Nobody joins it, and it joins nobody: the next death will show who is to blame.
            self.is_closed = True
            if not is_alone:
                self._admission.forget(execution)
                self.send_back([(job.id, execution.id)], "runs_alone")
                return None
        return self._admission.board(job, execution, spec)

    def send_back(self, held: Sequence[tuple[str, str]], reason: str) -> None:
        """Put jobs, oldest first, back into the queue: now, or by the beat as soon as it can.

        Args:
            held: Job ids and tokens.
            reason: Why, for the jobs' events and the metric.
        """
        for job_id, token in held:
            self._strays.add(job_id, token, reason)
        with self._link.attempt():
            self._strays.hand_back()

    def _refuse(self, job: FencedJob, execution: Execution, reason: str) -> None:
        is_refused = False
        with self._link.attempt():
            self._landing.refuse(job, execution, reason)
            is_refused = True
        if not is_refused:
            # Whoever takes it next refuses it.
            self._strays.add(job.id, execution.id, NOT_BEGUN)
