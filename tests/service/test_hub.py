import asyncio
from collections.abc import Awaitable, Callable

from koala.connections import connect_async
from koala.queue import JobQueue, new_job_id
from koala.settings import Settings
from service.hub import Hub
from tests.service.fakes import FakeWorker
from tests.support import spec

NEVER = 3600.0


def run(settings: Settings, use: Callable[[Hub, JobQueue], Awaitable[None]], poll: float) -> None:
    async def main() -> None:
        connection = connect_async(settings)
        queue = JobQueue(connection, settings)
        hub = Hub(connection, queue, poll_seconds=poll)
        try:
            async with hub.running():
                await subscribed(queue, connection)
                await use(hub, queue)
        finally:
            await connection.aclose()

    async def subscribed(queue: JobQueue, connection: object) -> None:
        while not (await queue._redis.pubsub_numsub(queue.keys.wake))[0][1]:
            await asyncio.sleep(0.01)

    asyncio.run(main())


def test_an_end_between_watching_and_waiting_is_not_lost(
    settings: Settings, worker: FakeWorker
) -> None:
    async def use(hub: Hub, queue: JobQueue) -> None:
        job_id = new_job_id()
        with hub.watch(job_id) as event:
            await queue.submit(spec(), job_id)
            await asyncio.to_thread(lambda: worker.finish(worker.take()))
            # Any waiting begins only after the job has long ended.
            await asyncio.sleep(0.1)
            await asyncio.wait_for(event.wait(), 1)

    run(settings, use, poll=NEVER)


def test_only_those_who_watch_the_job_are_woken(settings: Settings, worker: FakeWorker) -> None:
    async def use(hub: Hub, queue: JobQueue) -> None:
        mine, other = new_job_id(), new_job_id()
        with hub.watch(mine) as a, hub.watch(mine) as b, hub.watch(other) as c:
            await queue.submit(spec(), mine)
            await queue.submit(spec(), other)
            await asyncio.to_thread(lambda: worker.finish(worker.take()))
            await asyncio.wait_for(asyncio.gather(a.wait(), b.wait()), 1)
            assert not c.is_set()
        assert hub.watched == 0

    run(settings, use, poll=NEVER)


def test_progress_wakes_nobody(settings: Settings, worker: FakeWorker) -> None:
    async def use(hub: Hub, queue: JobQueue) -> None:
        job_id = new_job_id()
        with hub.watch(job_id) as event:
            await queue.submit(spec(), job_id)
            await asyncio.to_thread(lambda: worker.step(worker.take(), 3))
            await asyncio.sleep(0.2)
            assert not event.is_set()

    run(settings, use, poll=NEVER)


def test_a_message_that_makes_no_sense_does_no_harm(settings: Settings, worker: FakeWorker) -> None:
    async def use(hub: Hub, queue: JobQueue) -> None:
        job_id = new_job_id()
        with hub.watch(job_id) as event:
            await queue.submit(spec(), job_id)
            worker.redis.publish(queue.keys.wake, "what? nonsense")
            worker.redis.publish(queue.keys.wake, b"\xff\xfe")
            await asyncio.to_thread(lambda: worker.finish(worker.take()))
            await asyncio.wait_for(event.wait(), 1)

    run(settings, use, poll=NEVER)


def test_a_lost_message_is_made_up_for(settings: Settings, worker: FakeWorker) -> None:
    async def use(hub: Hub, queue: JobQueue) -> None:
        job_id = new_job_id()
        with hub.watch(job_id) as event:
            await queue.submit(spec(), job_id)
            await asyncio.to_thread(lambda: worker.finish(worker.take(), silently=True))
            await asyncio.wait_for(event.wait(), 2)

    run(settings, use, poll=0.05)


def test_the_end_of_a_vanished_job_is_noticed(settings: Settings, worker: FakeWorker) -> None:
    async def use(hub: Hub, queue: JobQueue) -> None:
        job_id = new_job_id()
        with hub.watch(job_id) as event:
            await queue.submit(spec(), job_id)
            worker.redis.delete(queue.keys.job(job_id))
            await asyncio.wait_for(event.wait(), 2)

    run(settings, use, poll=0.05)
