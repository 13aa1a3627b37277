"""Cancelling in the queue, before any worker is involved."""

import asyncio
import random

import pytest
import redis
from rq.job import JobStatus
from rq.registry import CanceledJobRegistry
from rq.serializers import JSONSerializer

from koala.cancelling import Cancelled
from koala.connections import connect
from koala.errors import JobNotFound
from koala.events import decode
from koala.queue import JobQueue
from koala.settings import Settings
from tests.koala.test_queue import rq_job, run
from tests.support import spec


@pytest.fixture
def connection(settings: Settings) -> redis.Redis:
    return connect(settings)


def test_a_waiting_job_is_cancelled_at_once(settings: Settings, connection: redis.Redis) -> None:
    async def use(queue: JobQueue) -> None:
        job_id = (await queue.submit(spec(owner="a", deadline=2e9))).record.id
        other = (await queue.submit(spec())).record.id

        assert await queue.cancel(job_id) is Cancelled.CANCELLED

        record = await queue.get(job_id)
        assert (record.state, record.position) == ("cancelled", None)
        assert record.ended_at is not None
        assert record.expires_at is not None
        assert [i.decode() for i in connection.lrange(queue.keys.pending, 0, -1)] == [other]
        job = rq_job(connection, job_id)
        assert job.get_status() is JobStatus.CANCELED
        registry = CanceledJobRegistry("koala", connection=connection, serializer=JSONSerializer)
        assert job in registry
        events = [decode(*entry) for entry in connection.xrange(queue.keys.events(job_id))]
        assert [str(event.type) for event in events if event] == ["queued", "cancelled"]
        assert connection.exists(queue.keys.deadlines, queue.keys.waiting_of("a")) == 0

    run(settings, use)


def test_cancelling_twice_changes_nothing(settings: Settings, connection: redis.Redis) -> None:
    async def use(queue: JobQueue) -> None:
        job_id = (await queue.submit(spec())).record.id
        await queue.cancel(job_id)
        before = connection.hgetall(queue.keys.job(job_id))

        assert await queue.cancel(job_id) is Cancelled.OVER

        assert connection.hgetall(queue.keys.job(job_id)) == before
        assert connection.xlen(queue.keys.events(job_id)) == 2

    run(settings, use)


def test_a_job_that_never_was_cannot_be_cancelled(settings: Settings) -> None:
    async def use(queue: JobQueue) -> None:
        with pytest.raises(JobNotFound):
            await queue.cancel("job_" + "0" * 32)

    run(settings, use)


def test_an_abandoned_job_is_cancelled_unless_somebody_else_knows_it(settings: Settings) -> None:
    async def use(queue: JobQueue) -> None:
        abandoned = (await queue.submit(spec())).record.id
        asynchronous = (await queue.submit(spec(), kept=True)).record.id
        watched = (await queue.submit(spec())).record.id
        await queue.keep(watched)

        assert await queue.cancel(abandoned, if_abandoned=True) is Cancelled.CANCELLED
        assert await queue.cancel(asynchronous, if_abandoned=True) is Cancelled.KEPT
        assert await queue.cancel(watched, if_abandoned=True) is Cancelled.KEPT
        assert (await queue.get(watched)).state == "queued"
        assert await queue.cancel(watched) is Cancelled.CANCELLED

    run(settings, use)


def test_keeping_a_job_that_is_gone_makes_none(settings: Settings, connection: redis.Redis) -> None:
    async def use(queue: JobQueue) -> None:
        await queue.keep("job_" + "0" * 32)
        assert connection.exists(queue.keys.job("job_" + "0" * 32)) == 0

    run(settings, use)


def test_many_who_cancel_the_same_job_at_once_agree(settings: Settings) -> None:
    async def use(queue: JobQueue) -> None:
        ids = [(await queue.submit(spec(seed=i))).record.id for i in range(20)]
        wishes = [job_id for job_id in ids for _ in range(10)]
        random.Random(4).shuffle(wishes)

        outcomes = await asyncio.gather(*(queue.cancel(job_id) for job_id in wishes))

        assert outcomes.count(Cancelled.CANCELLED) == 20
        assert outcomes.count(Cancelled.OVER) == 180
        assert await queue.depth() == 0

    run(settings, use)
