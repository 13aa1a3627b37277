"""Admission: bounds for each owner, and idempotency."""

import asyncio

import pytest
import redis

from koala.connections import connect
from koala.errors import IdempotencyConflict, QueueFull
from koala.queue import JobQueue
from koala.settings import Settings
from koala.submission import Idempotency
from tests.koala.test_queue import run
from tests.support import spec


@pytest.fixture
def connection(settings: Settings) -> redis.Redis:
    return connect(settings)


def test_an_owner_may_not_fill_the_queue_but_others_may_go_on(settings: Settings) -> None:
    async def use(queue: JobQueue) -> None:
        outcomes = await asyncio.gather(
            *(queue.submit(spec(owner="a", seed=i), owner_limit=3) for i in range(9)),
            return_exceptions=True,
        )
        refused = [outcome for outcome in outcomes if isinstance(outcome, QueueFull)]
        assert [(error.code, error.waiting) for error in refused] == [("too_many_queued", 3)] * 6
        await queue.submit(spec(owner="b"), owner_limit=3)
        await queue.submit(spec())
        assert await queue.depth() == 5

    run(settings, use)


def test_a_cancelled_job_makes_room_for_its_owner(settings: Settings) -> None:
    async def use(queue: JobQueue) -> None:
        first = (await queue.submit(spec(owner="a"), owner_limit=1)).record
        with pytest.raises(QueueFull):
            await queue.submit(spec(owner="a"), owner_limit=1)
        await queue.cancel(first.id)
        assert (await queue.submit(spec(owner="a"), owner_limit=1)).is_new

    run(settings, use)


def test_what_left_the_queue_by_other_ways_does_not_count_against_its_owner(
    settings: Settings, connection: redis.Redis
) -> None:
    async def use(queue: JobQueue) -> None:
        first = (await queue.submit(spec(owner="a"), owner_limit=1)).record
        connection.lrem(queue.keys.pending, 1, first.id)
        connection.delete(queue.keys.job(first.id))
        assert (await queue.submit(spec(owner="a"), owner_limit=1)).is_new

    run(settings, use)


def test_an_owners_jobs_are_listed_apart(settings: Settings) -> None:
    async def use(queue: JobQueue) -> None:
        mine = [(await queue.submit(spec(owner="a"))).record.id for _ in range(3)]
        theirs = (await queue.submit(spec(owner="b"))).record.id

        assert [record.id for record in await queue.newest(10, owner="a")] == mine[::-1]
        assert [record.id for record in await queue.newest(1, mine[2], owner="a")] == [mine[1]]
        assert len(await queue.newest(10)) == 4
        assert theirs not in {record.id for record in await queue.newest(10, owner="a")}

    run(settings, use)


def test_an_owners_list_forgets_jobs_that_have_expired(
    settings: Settings, connection: redis.Redis
) -> None:
    async def use(queue: JobQueue) -> None:
        for _ in range(3):
            gone = (await queue.submit(spec(owner="a"))).record.id
            connection.delete(queue.keys.job(gone))
        await queue.submit(spec(owner="a"))
        assert connection.zcard(queue.keys.index_of("a")) == 1

    run(settings, use)


def test_the_same_key_and_body_give_the_same_job_however_many_ask(settings: Settings) -> None:
    async def use(queue: JobQueue) -> None:
        key = Idempotency("order 7", "digest")
        answers = await asyncio.gather(
            *(queue.submit(spec(seed=i), idempotency=key) for i in range(20))
        )
        assert len({answer.record.id for answer in answers}) == 1
        assert [answer.is_new for answer in answers].count(True) == 1
        assert await queue.depth() == 1

    run(settings, use)


def test_the_same_key_with_another_body_is_a_conflict(settings: Settings) -> None:
    async def use(queue: JobQueue) -> None:
        await queue.submit(spec(), idempotency=Idempotency("order 7", "one"))
        with pytest.raises(IdempotencyConflict, match="Idempotency-Key"):
            await queue.submit(spec(), idempotency=Idempotency("order 7", "two"))
        assert await queue.depth() == 1

    run(settings, use)


def test_keys_of_different_owners_have_nothing_to_do_with_each_other(settings: Settings) -> None:
    async def use(queue: JobQueue) -> None:
        key = Idempotency("order 7", "one")
        assert (await queue.submit(spec(owner="a"), idempotency=key)).is_new
        assert (await queue.submit(spec(owner="b"), idempotency=key)).is_new

    run(settings, use)


def test_a_key_is_kept_a_day_and_is_free_again_when_its_job_is_gone(
    settings: Settings, connection: redis.Redis
) -> None:
    async def use(queue: JobQueue) -> None:
        key = Idempotency("order 7", "one")
        first = (await queue.submit(spec(), idempotency=key)).record.id
        [stored] = connection.keys(queue.keys.idempotency("", "*"))
        assert 86_300 < connection.ttl(stored) <= 86_400
        connection.delete(queue.keys.job(first))
        again = await queue.submit(spec(), idempotency=key)
        assert again.is_new
        assert again.record.id != first

    run(settings, use)


def test_a_full_queue_still_answers_for_a_key_it_knows(settings: Settings) -> None:
    small = settings.model_copy(update={"max_queued": 1})

    async def use(queue: JobQueue) -> None:
        key = Idempotency("order 7", "one")
        first = (await queue.submit(spec(), idempotency=key)).record.id
        with pytest.raises(QueueFull):
            await queue.submit(spec())
        assert (await queue.submit(spec(), idempotency=key)).record.id == first

    run(small, use)
