import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
import redis
from rq import Queue
from rq.job import Job, JobStatus
from rq.serializers import JSONSerializer

from koala.connections import connect, connect_async
from koala.errors import JobNotFound, QueueFull
from koala.events import EventType, JobEvent, decode, parse_wake, publish
from koala.keys import GENERATE
from koala.queue import JobQueue
from koala.settings import Settings
from koala.spec import JobSpec, Progress
from tests.support import spec


@asynccontextmanager
async def opened(settings: Settings) -> AsyncIterator[JobQueue]:
    connection = connect_async(settings)
    try:
        yield JobQueue(connection, settings)
    finally:
        await connection.aclose()


def run(settings: Settings, use: Callable[[JobQueue], Awaitable[object]]) -> None:
    async def main() -> None:
        async with opened(settings) as queue:
            await use(queue)

    asyncio.run(main())


@pytest.fixture
def connection(settings: Settings) -> redis.Redis:
    return connect(settings)


def rq_job(connection: redis.Redis, job_id: str) -> Job:
    return Job.fetch(job_id, connection=connection, serializer=JSONSerializer)


def test_an_admitted_job_is_an_ordinary_rq_job(settings: Settings, connection: redis.Redis) -> None:
    async def use(queue: JobQueue) -> None:
        record = (await queue.submit(spec(n=2))).record
        rq = Queue("koala", connection=connection, serializer=JSONSerializer)
        assert rq.job_ids == [record.id]
        assert Queue.all(connection=connection) == [rq]
        job = rq_job(connection, record.id)
        assert job.get_status() is JobStatus.QUEUED
        assert (job.func_name, job.timeout, job.result_ttl) == (GENERATE, 600, 86_400)
        assert JobSpec.model_validate(job.kwargs["spec"]) == record.spec
        assert (record.state, record.position) == ("queued", 0)
        assert record.progress == Progress(step=0, steps=20)

    run(settings, use)


def test_a_record_is_read_back_as_it_was_submitted(settings: Settings) -> None:
    async def use(queue: JobQueue) -> None:
        submitted = (
            await queue.submit(spec(prompt="ein Koala, 考拉 🐨", negative_prompt="\n'\""))
        ).record
        assert await queue.get(submitted.id) == submitted
        second = (await queue.submit(spec())).record
        assert (await queue.get(second.id)).position == 1

    run(settings, use)


def test_no_more_than_the_limit_is_admitted_however_many_ask_at_once(settings: Settings) -> None:
    limited = settings.model_copy(update={"max_queued": 20})

    async def use(queue: JobQueue) -> None:
        outcomes = await asyncio.gather(
            *(queue.submit(spec(seed=i)) for i in range(64)), return_exceptions=True
        )
        full = [outcome for outcome in outcomes if isinstance(outcome, QueueFull)]
        assert len(full) == 44
        assert await queue.depth() == 20
        assert {error.waiting for error in full} == {20}

    run(limited, use)


def test_a_refused_job_leaves_nothing_behind(settings: Settings, connection: redis.Redis) -> None:
    async def use(queue: JobQueue) -> None:
        await queue.submit(spec())
        before = sorted(connection.keys())
        with pytest.raises(QueueFull):
            await queue.submit(spec())
        assert sorted(connection.keys()) == before

    run(settings.model_copy(update={"max_queued": 1}), use)


def test_the_newest_jobs_are_listed_first_page_by_page(settings: Settings) -> None:
    async def use(queue: JobQueue) -> None:
        ids = [(await queue.submit(spec(seed=i))).record.id for i in range(5)]
        first = await queue.newest(3)
        assert [record.id for record in first] == ids[:1:-1]
        second = await queue.newest(3, after=first[-1].id)
        assert [record.id for record in second] == ids[1::-1]
        with pytest.raises(JobNotFound):
            await queue.newest(3, after="job_none")

    run(settings, use)


def test_expired_jobs_make_no_page_short_and_are_forgotten(
    settings: Settings, connection: redis.Redis
) -> None:
    async def use(queue: JobQueue) -> None:
        ids = [(await queue.submit(spec(seed=i))).record.id for i in range(7)]
        for expired in ids[2:6]:
            connection.delete(queue.keys.job(expired))
        assert [record.id for record in await queue.newest(2)] == [ids[6], ids[1]]
        assert [record.id for record in await queue.newest(9)] == [ids[6], ids[1], ids[0]]
        assert connection.zcard(queue.keys.index) == 3

    run(settings, use)


def test_an_unknown_job_is_an_error_that_names_it(settings: Settings) -> None:
    async def use(queue: JobQueue) -> None:
        with pytest.raises(JobNotFound, match="job_none"):
            await queue.get("job_none")

    run(settings, use)


def test_progress_comes_from_the_last_step_event(
    settings: Settings, connection: redis.Redis
) -> None:
    async def use(queue: JobQueue) -> None:
        record = (await queue.submit(spec())).record
        rq_job(connection, record.id).set_status(JobStatus.STARTED)
        event = JobEvent(EventType.STEP, {"step": 4, "steps": 10})
        publish(connection, queue.keys, record.id, event, ttl=60)
        read = await queue.get(record.id)
        assert (read.state, read.position) == ("in_progress", None)
        assert read.progress == Progress(step=4, steps=10)

    run(settings, use)


def test_an_event_wakes_listeners_and_stays_in_the_stream(
    settings: Settings, connection: redis.Redis
) -> None:
    async def use(queue: JobQueue) -> None:
        listener = connection.pubsub(ignore_subscribe_messages=True)
        listener.subscribe(queue.keys.wake, queue.keys.progress)
        record = (await queue.submit(spec())).record
        for step in range(100):
            event = JobEvent(EventType.STEP, {"step": step, "steps": 100})
            publish(connection, queue.keys, record.id, event, ttl=60)
        messages = []
        for message in listener.listen():
            messages.append((message["channel"].decode(), *parse_wake(message["data"])))
            if len(messages) == 101:
                break
        # Steps have a channel of their own: who waits for an end is not woken by them.
        assert messages[0] == (queue.keys.wake, record.id, EventType.QUEUED)
        assert messages[1:] == [(queue.keys.progress, record.id, EventType.STEP)] * 100
        entries = connection.xrange(queue.keys.events(record.id))
        assert len(entries) == 64
        assert decode(*entries[-1]) == JobEvent(
            EventType.STEP, {"step": 99, "steps": 100}, entries[-1][0].decode()
        )
        assert 0 < connection.ttl(queue.keys.events(record.id)) <= 60

    run(settings, use)


def test_a_job_that_rq_itself_gave_up_is_failed_with_rqs_reason(
    settings: Settings, connection: redis.Redis
) -> None:
    async def use(queue: JobQueue) -> None:
        record = (await queue.submit(spec())).record
        job = rq_job(connection, record.id)
        job.set_status(JobStatus.FAILED)
        with connection.pipeline() as pipeline:
            job._handle_failure("Traceback ...\nrq.exceptions.AbandonedJobError", pipeline)
            pipeline.execute()
        read = await queue.get(record.id)
        assert read.state == "failed"
        assert read.error is not None
        assert (read.error.code, read.error.message) == (
            "abandoned",
            "rq.exceptions.AbandonedJobError",
        )

    run(settings, use)


def test_an_event_that_only_a_newer_version_knows_does_no_harm(
    settings: Settings, connection: redis.Redis
) -> None:
    async def use(queue: JobQueue) -> None:
        record = (await queue.submit(spec())).record
        entry = {"type": "teleported", "data": "{}"}
        connection.xadd(queue.keys.events(record.id), entry)
        assert await queue.get(record.id) == record

    run(settings, use)
