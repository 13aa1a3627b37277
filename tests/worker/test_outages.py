"""Redis that does not answer, or answers that it cannot: the worker and its jobs outlast it."""

import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from redis.exceptions import RedisError, ResponseError

from koala import embedded
from koala.connections import connect
from koala.settings import Settings
from tests.service.fakes import wait_until
from tests.worker.claims import leases, pending, pop
from tests.worker.rig import MODEL, Rig
from worker.admission import Admission
from worker.boarding import Boarding
from worker.fencing import FencedJob
from worker.inflight import InflightWorker
from worker.landing import Landing
from worker.link import Link, is_outage
from worker.report import Report
from worker.steady import SteadyWorker
from worker.strays import Strays

_ANSWER_SECONDS = 0.3


class Server:
    """A server of this test's own, that can be frozen in the middle of anything."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def freeze(self) -> None:
        """Let it answer nothing; it still takes in what it is sent."""
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        self._process.send_signal(signal.SIGCONT)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Server, Rig]]:
    """A server, and a queue on it whose workers wait for an answer for a moment only."""
    monkeypatch.setattr(SteadyWorker, "connection_timeout", _ANSWER_SECONDS)
    settings = Settings(data_dir=tmp_path, lease_seconds=2, heartbeat_seconds=0.5)
    process = subprocess.Popen(embedded.prepare(settings))
    try:
        embedded.wait_until_ready(settings)
        with redis.Redis.from_url(settings.resolved_redis_url) as client:
            yield Server(process), Rig(settings, client)
    finally:
        process.send_signal(signal.SIGCONT)
        process.terminate()
        process.wait(10)


def impatient(rig: Rig) -> InflightWorker:
    """A worker whose calls time out."""
    connection = connect(rig.settings)
    connection.connection_pool.connection_kwargs["socket_timeout"] = _ANSWER_SECONDS
    return rig.worker(connection=connection)


def strays_of(rig: Rig) -> Strays:
    """Strays whose calls do not time out."""
    return Strays(leases(rig), rig.metrics)


def freeze_before_answers_to_claims(
    server: Server, monkeypatch: pytest.MonkeyPatch, thaw_after: float | None = None
) -> None:
    """Freeze the server when a claim is about to be sent, which it will still take in."""
    real = Admission._write_claim

    def write(*args: object) -> object:
        written = real(*args)  # type: ignore[arg-type]
        server.freeze()
        if thaw_after is not None:
            threading.Timer(thaw_after, server.thaw).start()
        return written

    monkeypatch.setattr(Admission, "_write_claim", write)


def test_drawing_goes_on_while_redis_answers_nothing(
    server: tuple[Server, Rig], monkeypatch: pytest.MonkeyPatch
) -> None:
    frozen, rig = server
    job_id = rig.submit(num_inference_steps=200)
    worker = impatient(rig)
    waited_at: list[int] = []
    fail = Link._failed

    def note(link: Link, error: Exception) -> None:
        if link is worker.link:
            waited_at.append(rig.engine.steps_taken)
        fail(link, error)

    def draw(number: int) -> None:
        time.sleep(0.03)
        if number == 20:
            frozen.freeze()
        if number == 190:
            frozen.thaw()

    monkeypatch.setattr(Link, "_failed", note)
    rig.engine.before_step = draw
    worker.work(burst=True)

    assert rig.record(job_id).state == "completed"
    assert rig.record(job_id).attempts == 0
    # The loop may run into it before the heartbeat does; from then on that is who waits.
    assert all(20 <= number < 100 for number in waited_at), waited_at


def test_a_claim_whose_answer_got_lost_is_found_to_be_ours(
    server: tuple[Server, Rig], monkeypatch: pytest.MonkeyPatch
) -> None:
    frozen, rig = server
    job_id = rig.submit()
    worker = impatient(rig)
    job = pop(rig, worker)
    freeze_before_answers_to_claims(frozen, monkeypatch, thaw_after=1.5 * _ANSWER_SECONDS)

    execution = Admission(worker, leases(rig), strays_of(rig), rig.settings, MODEL).claim(job)

    assert execution is not None
    assert rig.redis.hget(job.key, "koala_execution") == execution.id.encode()
    assert rig.record(job_id).state == "in_progress"
    assert rig.told(job_id) == ["queued", "admitted"]


def test_a_claim_that_is_never_answered_is_handed_back_and_costs_no_attempt(
    server: tuple[Server, Rig], monkeypatch: pytest.MonkeyPatch
) -> None:
    frozen, rig = server
    job_id = rig.submit()
    worker = impatient(rig)
    job = pop(rig, worker)
    freeze_before_answers_to_claims(frozen, monkeypatch)
    strays = strays_of(rig)

    with pytest.raises(RedisError):
        Admission(worker, leases(rig), strays, rig.settings, MODEL).claim(job)
    frozen.thaw()
    wait_until(lambda: rig.record(job_id).state == "in_progress")
    strays.hand_back()

    assert pending(rig) == [job_id]
    assert rig.record(job_id).attempts == 0
    assert rig.events(job_id)[-1].data == {"reason": "not_begun", "attempts": 0}


def test_a_refusal_that_cannot_be_written_down_is_left_to_the_next_worker(
    server: tuple[Server, Rig], monkeypatch: pytest.MonkeyPatch
) -> None:
    frozen, rig = server
    job_id = rig.submit(model="another")
    worker = impatient(rig)
    landing = Landing(worker, rig.metrics, Report(worker.name, rig.metrics, worker.clock, None))
    strays = strays_of(rig)
    admission = Admission(worker, leases(rig), strays, rig.settings, MODEL)
    real = worker.fail

    def fail(job: FencedJob, *args: object) -> None:
        frozen.freeze()
        real(job, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(worker, "fail", fail)
    boarding = Boarding(Link("test"), admission, landing, strays, worker._unsupported)

    assert boarding.take(pop(rig, worker), is_alone=True) is None
    frozen.thaw()
    strays.hand_back()
    rig.work()

    record = rig.record(job_id)
    assert (record.state, record.attempts) == ("failed", 0)
    assert rig.leftovers() == []


def test_a_refusal_whose_answer_got_lost_is_no_harm(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused, good = rig.submit(model="another"), rig.submit()
    worker = rig.worker()
    real = worker.fail

    def fail_twice(job: FencedJob, *args: object) -> None:
        real(job, *args)  # type: ignore[arg-type]
        real(job, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(worker, "fail", fail_twice)

    worker.work(burst=True)

    assert (rig.record(refused).state, rig.record(good).state) == ("failed", "completed")


def test_the_beat_hands_back_what_the_loop_could_not(rig: Rig) -> None:
    job_id = rig.submit()
    worker = rig.worker()
    worker.register_birth()
    job = pop(rig, worker)
    execution = worker._boarding._admission.claim(job)
    assert execution is not None
    worker._strays.add(job_id, execution.id, "runs_alone")

    worker._upkeep.beat()

    assert pending(rig) == [job_id]
    assert rig.record(job_id).attempts == 0


@pytest.fixture
def read_only(rig: Rig) -> Iterator[redis.Redis]:
    """A client that can let the server refuse all writes, as one whose disk is full does."""
    with redis.Redis.from_url(rig.settings.resolved_redis_url) as client:
        yield client
        client.config_set("min-replicas-to-write", 0)


def popping(client: redis.Redis) -> list[int]:
    """Ids of the clients in a blocking pop."""
    return [int(each["id"]) for each in client.client_list() if each["cmd"] == "blmove"]


def test_an_idle_worker_outlasts_a_server_that_refuses_writes(
    rig: Rig, read_only: redis.Redis
) -> None:
    worker = rig.worker()
    thread = threading.Thread(target=worker.work, kwargs={"max_jobs": 1})
    thread.start()
    wait_until(lambda: bool(popping(read_only)))
    read_only.config_set("min-replicas-to-write", 1)
    # The blocking pop that has begun could go on; the next one is refused.
    for client_id in popping(read_only):
        read_only.client_unblock(client_id)
    wait_until(lambda: worker.link.is_down)
    read_only.config_set("min-replicas-to-write", 0)
    job_id = rig.submit()
    thread.join(120)
    assert not thread.is_alive()
    assert rig.record(job_id).state == "completed"


def test_jobs_in_flight_outlast_a_server_that_refuses_writes(
    rig: Rig, read_only: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.herald.PACE_SECONDS", 0.0)

    def hook(step: int) -> None:
        if step == 2:
            read_only.config_set("min-replicas-to-write", 1)
        if step == 6:
            assert worker.link.is_down
            read_only.config_set("min-replicas-to-write", 0)

    rig.engine.before_step = hook
    job_id = rig.submit(num_inference_steps=8)
    worker = rig.worker()

    worker.work(burst=True)

    assert (rig.record(job_id).state, rig.record(job_id).attempts) == ("completed", 0)


def test_jobs_in_flight_outlast_a_server_whose_memory_is_full(
    rig: Rig, read_only: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.herald.PACE_SECONDS", 0.0)

    def hook(step: int) -> None:
        if step == 2:
            read_only.config_set("maxmemory", 1)
        if step == 6:
            assert worker.link.is_down
            with pytest.raises(redis.exceptions.OutOfMemoryError):
                rig.submit()
            # The memory is full at the end, too: others' jobs expire later.
            threading.Timer(0.5, read_only.config_set, ("maxmemory", 0)).start()

    rig.engine.before_step = hook
    job_id = rig.submit(num_inference_steps=8)
    worker = rig.worker()
    try:
        worker.work(burst=True)
    finally:
        read_only.config_set("maxmemory", 0)

    assert (rig.record(job_id).state, rig.record(job_id).attempts) == ("completed", 0)
    assert rig.leftovers() == []


def test_an_end_is_written_down_once_the_server_takes_writes_again(
    rig: Rig, read_only: redis.Redis
) -> None:
    job_id = rig.submit()
    worker = rig.worker()
    real = worker.complete
    tries = 0

    def complete(*args: object) -> None:
        nonlocal tries
        tries += 1
        if tries == 1:
            read_only.config_set("min-replicas-to-write", 1)
            threading.Timer(0.3, read_only.config_set, ("min-replicas-to-write", 0)).start()
        real(*args)  # type: ignore[arg-type]

    worker.complete = complete  # type: ignore[method-assign]

    worker.work(burst=True)

    assert tries == 2
    assert rig.record(job_id).state == "completed"


@pytest.mark.parametrize(
    ("message", "passes"),
    [
        ("MISCONF Errors writing to the AOF file: No space left on device", True),
        (
            "Command # 1 (HSET a) of pipeline caused error: NOREPLICAS Not enough good replicas",
            True,
        ),
        ("WRONGTYPE Operation against a key holding the wrong kind of value", False),
    ],
)
def test_only_what_passes_by_itself_is_an_outage(message: str, passes: bool) -> None:
    assert is_outage(ResponseError(message)) is passes
