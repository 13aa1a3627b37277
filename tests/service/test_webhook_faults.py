"""Webhooks when gateways, Redis or receivers let them down."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from koala import embedded
from koala.settings import Settings
from tests.service.fakes import FakeWorker, serving, wait_until
from tests.service.webhook_rig import (
    QUICK,
    SECRET,
    Receiver,
    count,
    outbox,
    receiving,
    settled,
    submit,
    with_webhooks,
)


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return with_webhooks(settings)


@contextmanager
def gateway_process(settings: Settings) -> Iterator[subprocess.Popen[bytes]]:
    """A gateway that can be killed."""
    env = {
        "KOALA_REDIS_URL": settings.resolved_redis_url,
        "KOALA_DATA_DIR": str(settings.data_dir),
        "KOALA_PORT": "0",
        "KOALA_WEBHOOK_SECRET": SECRET,
        "KOALA_WEBHOOK_ALLOW_PRIVATE": "1",
    }
    command = [sys.executable, "-m", "koala", "serve"]
    with subprocess.Popen(command, env={**os.environ, **env}) as process:
        try:
            yield process
        finally:
            process.kill()


def ended_job(settings: Settings, worker: FakeWorker, url: str) -> str:
    """A job that ended while no gateway could deliver its webhook; its id."""
    with serving(settings, QUICK) as served:
        job_id = submit(served, url)
    worker.finish(worker.take())
    return job_id


def make_due(worker: FakeWorker, job_id: str) -> None:
    """Let the time come that a webhook waits for: a delay, or the end of a lease."""
    assert worker.redis.zadd(worker.keys.outbox, {job_id: 1}, xx=True, ch=True)


def test_a_job_that_ended_while_no_gateway_ran_is_told_later(
    settings: Settings, worker: FakeWorker, receiver: Receiver
) -> None:
    job_id = ended_job(settings, worker, receiver.url)
    assert list(outbox(worker)) == [job_id]
    with serving(settings, QUICK) as served:
        settled(served, worker, "delivered")
    assert receiver.ids() == [job_id]


def test_a_gateway_killed_between_two_attempts_is_followed_by_another(
    settings: Settings, worker: FakeWorker, receiver: Receiver
) -> None:
    receiver.answers = [(500, {"Retry-After": "3600"})]
    job_id = ended_job(settings, worker, receiver.url)
    with gateway_process(settings) as process:
        wait_until(lambda: outbox(worker)[job_id] > time.time() + 3000, 20)
        process.kill()
    make_due(worker, job_id)
    with serving(settings, QUICK) as served:
        settled(served, worker, "delivered")
    assert receiver.ids() == [job_id] * 2
    assert [delivery.verified(SECRET)["data"]["id"] for delivery in receiver.deliveries]


def test_a_gateway_killed_in_an_attempt_is_followed_when_its_lease_is_over(
    settings: Settings, worker: FakeWorker, receiver: Receiver
) -> None:
    receiver.hold.clear()
    job_id = ended_job(settings, worker, receiver.url)
    with gateway_process(settings) as process:
        wait_until(lambda: receiver.ids() == [job_id], 20)
        process.kill()
    with serving(settings, QUICK) as served:
        time.sleep(0.5)
        assert receiver.ids() == [job_id]
        assert outbox(worker)[job_id] > time.time()
        make_due(worker, job_id)
        receiver.hold.set()
        settled(served, worker, "delivered")
    assert receiver.ids() == [job_id] * 2


def test_a_gateway_that_is_stopped_in_an_attempt_hands_it_over_at_once(
    settings: Settings, worker: FakeWorker, receiver: Receiver
) -> None:
    receiver.hold.clear()
    job_id = ended_job(settings, worker, receiver.url)
    with gateway_process(settings) as process:
        wait_until(lambda: receiver.ids() == [job_id], 20)
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 0
    assert outbox(worker)[job_id] <= time.time()
    # Nothing came of the attempt, so it does not count.
    assert worker.redis.hget(worker.keys.job(job_id), "koala_webhook_attempts") == b"0"


def test_a_gateway_that_is_stopped_waits_for_the_end_of_an_attempt(
    settings: Settings, worker: FakeWorker, receiver: Receiver
) -> None:
    receiver.hold.clear()
    job_id = ended_job(settings, worker, receiver.url)
    with gateway_process(settings) as process:
        wait_until(lambda: receiver.ids() == [job_id], 20)
        process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        receiver.hold.set()
        assert process.wait(120) == 0
    assert outbox(worker) == {}


def test_two_gateways_deliver_each_webhook_once(
    settings: Settings, worker: FakeWorker, receiver: Receiver
) -> None:
    with serving(settings, QUICK) as one, serving(settings, QUICK) as two:
        ids = [submit(one, receiver.url) for _ in range(60)]
        for _ in ids:
            worker.finish(worker.take())
        wait_until(lambda: count(one, "delivered") + count(two, "delivered") == len(ids))
        assert min(count(one, "delivered"), count(two, "delivered")) > 0
    assert outbox(worker) == {}
    assert Counter(receiver.ids()) == Counter(ids)


def test_a_slow_receiver_gets_few_at_once_and_holds_up_nobody(
    settings: Settings, worker: FakeWorker, receiver: Receiver
) -> None:
    receiver.hold.clear()
    with serving(settings, QUICK) as served, receiving() as other:
        slow = [submit(served, receiver.url) for _ in range(20)]
        for _ in slow:
            worker.finish(worker.take())
        wait_until(lambda: len(receiver.deliveries) == 4)
        # Another host by its name, and last in the line.
        fast = submit(served, other.url.replace("127.0.0.1", "localhost"))
        worker.finish(worker.take())
        wait_until(lambda: other.ids() == [fast])
        assert receiver.most_open == 4
        receiver.hold.set()
        wait_until(lambda: not outbox(worker), 30)
    assert receiver.most_open == 4
    assert Counter(receiver.ids()) == Counter(slow)


@contextmanager
def running_redis(settings: Settings) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(embedded.prepare(settings)) as server:
        embedded.wait_until_ready(settings)
        try:
            yield server
        finally:
            server.terminate()


def test_webhooks_survive_a_restart_of_redis(tmp_path: Path, receiver: Receiver) -> None:
    settings = with_webhooks(Settings(data_dir=tmp_path))
    receiver.answers = [(500, {"Retry-After": "3600"})]
    with running_redis(settings) as server, serving(settings, QUICK) as served:
        worker = FakeWorker(settings)
        waiting = submit(served, receiver.url)
        worker.finish(worker.take())
        wait_until(lambda: count(served, "retried") == 1)
        wait_until(lambda: outbox(worker)[waiting] > time.time() + 3000)

        # In the middle of an attempt, which succeeds while there is nowhere to write that down.
        receiver.hold.clear()
        under_way = submit(served, receiver.url)
        worker.finish(worker.take())
        wait_until(lambda: under_way in receiver.ids())
        # The server syncs its file every second.
        time.sleep(1.5)
        server.kill()
        server.wait()
        receiver.hold.set()
        time.sleep(0.5)

        with running_redis(settings):
            wait_until(lambda: list(outbox(worker)) == [waiting])
            make_due(worker, waiting)
            settled(served, worker, "delivered", 2)
    assert receiver.ids() == [waiting, under_way, waiting]
