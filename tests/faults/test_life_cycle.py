"""Whatever happens to jobs, in whatever order: each is in one place, and ends once."""

import time
from collections import Counter
from dataclasses import dataclass

from hypothesis import Phase
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)
from rq.executions import Execution

from koala.cancelling import Cancelled
from koala.errors import QueueFull
from koala.scripts import priority_class
from koala.spec import JobResult, JobSpec, Usage
from koala.submission import Idempotency
from tests.support import spec
from tests.worker.claims import admission, leases, pending, pop
from tests.worker.rig import Rig
from worker.fencing import AlreadyEnded, FencedJob, LeaseLost
from worker.flight import Outcome
from worker.inflight import InflightWorker

_LIMIT = 6
_RESULT = JobResult(
    images=[], usage=Usage(text_tokens=1), denoise_seconds=0, decode_and_store_seconds=0
)


@dataclass(frozen=True)
class Popped:
    """A job that a worker took off the list."""

    worker: InflightWorker
    job: FencedJob


@dataclass(frozen=True)
class Held(Popped):
    """A job that a worker believes to be its own."""

    execution: Execution

    @property
    def pair(self) -> tuple[str, str]:
        """What proves it."""
        return self.job.id, self.execution.id


class LifeCycle(RuleBasedStateMachine):
    """Clients, two workers that claim, finish, freeze and die, and the reaper."""

    rig: Rig
    jobs: Bundle[str] = Bundle("jobs")
    popped: Bundle[Popped] = Bundle("popped")
    held: Bundle[Held] = Bundle("held")

    def __init__(self) -> None:
        super().__init__()
        self.rig.redis.flushall()
        self.workers = [self.rig.worker(), self.rig.worker()]
        self.specs: dict[str, JobSpec] = {}
        self.by_key: dict[tuple[str, int], str] = {}
        self.ended: dict[str, str] = {}

    # Clients

    @rule(
        target=jobs,
        owner=st.sampled_from(["", "a", "b"]),
        priority=st.sampled_from(["high", "normal", "low"]),
        key=st.one_of(st.none(), st.integers(1, 3)),
        is_late=st.booleans(),
    )
    def submit(self, owner: str, priority: str, key: int | None, is_late: bool) -> object:
        """Admission is bounded, and an idempotency key stands for one job."""
        job = spec(owner=owner, priority=priority, deadline=time.time() - 1 if is_late else None)
        idempotency = None if key is None else Idempotency(str(key), "same")
        known = None if key is None else self.by_key.get((owner, key))
        try:
            submitted = self.rig.submit_with(job, idempotency=idempotency)
        except QueueFull:
            assert known is None
            assert len(self.queued()) == _LIMIT
            return multiple()
        job_id = submitted.record.id
        assert submitted.is_new == (known is None)
        if known is not None:
            assert job_id == known
            return multiple()
        if key is not None:
            self.by_key[owner, key] = job_id
        self.specs[job_id] = job
        return job_id

    @rule(job_id=jobs)
    def cancel(self, job_id: str) -> None:
        """Cancelling says what it did."""
        state = self.rig.record(job_id).state
        expected = {"queued": Cancelled.CANCELLED, "in_progress": Cancelled.ASKED}
        assert self.rig.cancel(job_id) is expected.get(state, Cancelled.OVER)

    # Workers

    @rule(target=popped, index=st.integers(0, 1))
    def pop(self, index: int) -> object:
        """A worker takes the first job off the list, and may die before it claims it."""
        if not pending(self.rig):
            return multiple()
        return Popped(self.workers[index], pop(self.rig, self.workers[index]))

    @rule(target=held, taken=consumes(popped))
    def claim(self, taken: Popped) -> object:
        """A claim succeeds just where the job is still queued."""
        state = self.rig.record(taken.job.id).state
        execution = admission(self.rig, taken.worker).claim(taken.job)
        assert (execution is not None) == (state == "queued")
        return multiple() if execution is None else Held(taken.worker, taken.job, execution)

    @rule(mine=consumes(held), how=st.sampled_from(["complete", "fail", "stop"]))
    def end(self, mine: Held, how: str) -> None:
        """Only who holds a job ends it."""
        token = self.rig.redis.hget(mine.job.key, "koala_execution")
        is_ours = token == mine.execution.id.encode() and mine.job.id not in self.ended
        try:
            if how == "complete":
                mine.job.last_event = Outcome.completed(_RESULT).event
                mine.worker.complete(mine.job, mine.execution, _RESULT.model_dump(mode="json"))
            else:
                outcome = Outcome.stopped() if how == "stop" else Outcome.failed("broken", "It is.")
                mine.job.last_event = outcome.event
                mine.worker.fail(mine.job, mine.execution, outcome.reason, outcome.status)
        except (LeaseLost, AlreadyEnded):
            assert not is_ours
        else:
            assert is_ours

    @rule(mine=consumes(held))
    def hand_back(self, mine: Held) -> None:
        """A worker that is stopped gives back what is its own."""
        is_ours = self.rig.redis.hget(mine.job.key, "koala_execution") == mine.execution.id.encode()
        is_running = self.rig.record(mine.job.id).state == "in_progress"
        returned = leases(self.rig).hand_back([mine.pair], "drained")
        assert returned == ([mine.job.id] if is_ours and is_running else [])

    @rule(mine=held)
    def renew(self, mine: Held) -> None:
        """A lease that was lost is not renewed."""
        is_ours = self.rig.redis.hget(mine.job.key, "koala_execution") == mine.execution.id.encode()
        is_running = self.rig.record(mine.job.id).state == "in_progress"
        assert (mine.job.id in leases(self.rig).renew([mine.pair]).lost) != (is_ours and is_running)

    # Time

    @rule(mine=held)
    def freeze(self, mine: Held) -> None:
        """A worker says nothing for too long; it may come back."""
        self.rig.redis.zadd(self.rig.keys.leases, {mine.job.id: 1}, xx=True)

    @rule()
    def wait_for_claims(self) -> None:
        """Popped jobs have waited long enough for their claim."""
        ids = self.rig.redis.lrange(self.rig.keys.intermediate, 0, -1)
        if ids:
            self.rig.redis.zadd(self.rig.keys.unclaimed, dict.fromkeys(ids, 1))

    @rule(index=st.integers(0, 1))
    def reap(self, index: int) -> None:
        """Another worker looks after what nobody works on."""
        self.workers[index]._upkeep.reap()
        assert not self.rig.redis.zrangebyscore(self.rig.keys.leases, 0, 1)

    # What holds at any time

    def queued(self) -> list[str]:
        """The jobs on RQ's two lists."""
        intermediate = self.rig.redis.lrange(self.rig.keys.intermediate, 0, -1)
        return pending(self.rig) + [job_id.decode() for job_id in intermediate]

    @invariant()
    def each_job_is_in_one_place(self) -> None:
        """A waiting job is on one list, a running one has a lease, an ended one is gone."""
        places = Counter(self.queued())
        leased = {i.decode() for i in self.rig.redis.zrange(self.rig.keys.leases, 0, -1)}
        for job_id in self.specs:
            state = self.rig.record(job_id).state
            assert places[job_id] == (1 if state == "queued" else 0), state
            assert (job_id in leased) == (state == "in_progress"), state

    @invariant()
    def each_job_ends_once(self) -> None:
        """What has ended stays so, and told of it once."""
        for job_id in self.specs:
            state = self.rig.record(job_id).state
            ends = [event for event in self.rig.events(job_id) if event.type.is_terminal]
            if state in ("completed", "failed", "cancelled"):
                assert self.ended.setdefault(job_id, state) == state
                assert [str(event.type) for event in ends] == [state]
            else:
                assert job_id not in self.ended
                assert ends == []

    @invariant()
    def the_queue_is_in_order(self) -> None:
        """Priorities come in order."""
        classes = [priority_class(self.specs[job_id].priority) for job_id in pending(self.rig)]
        assert classes == sorted(classes)

    @invariant()
    def owners_are_counted_right(self) -> None:
        """The sets that bound each owner hold just its waiting jobs."""
        waiting = set(self.queued())
        for owner in ("a", "b"):
            counted = self.rig.redis.smembers(self.rig.keys.waiting_of(owner))
            own = {job_id for job_id in waiting if self.specs[job_id].owner == owner}
            assert {job_id.decode() for job_id in counted} == own

    def teardown(self) -> None:
        """In the end everything ends."""
        for _ in range(10):
            for job_id in self.rig.redis.zrange(self.rig.keys.leases, 0, -1):
                self.rig.expire_lease(job_id.decode())
            self.wait_for_claims()
            self.reap(0)
            self.rig.work()
        for job_id in self.specs:
            assert self.rig.record(job_id).state in ("completed", "failed", "cancelled")
        assert self.rig.leftovers() == []


def test_jobs_live_as_they_should(rig: Rig) -> None:
    rig.settings = rig.settings.model_copy(update={"max_queued": _LIMIT})
    machine = type("BoundLifeCycle", (LifeCycle,), {"rig": rig})
    run_state_machine_as_test(
        machine,
        settings=hypothesis_settings(
            max_examples=40,
            stateful_step_count=40,
            deadline=None,
            # To shrink a failure would take longer than a test may.
            phases=(Phase.explicit, Phase.reuse, Phase.generate),
        ),
    )
