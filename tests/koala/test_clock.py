import asyncio

import pytest
import redis
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from koala import clock as clock_module
from koala.clock import AsyncRedisClock, RedisClock
from koala.connections import connect, connect_async
from koala.settings import Settings


@pytest.fixture
def steady(monkeypatch: pytest.MonkeyPatch) -> "Steady":
    made = Steady()
    monkeypatch.setattr(clock_module, "_steady", lambda: made.now)
    return made


class Steady:
    """A steady clock that a test sets."""

    now = 1000.0


def test_it_tells_the_time_of_redis(settings: Settings) -> None:
    connection, clock = connect(settings), RedisClock()
    clock.ask(connection)
    before, told, after = connection.time(), clock.time(), connection.time()
    connection.close()
    # The first answer took as long as a connection takes.
    assert before[0] - 1 <= told <= after[0] + 2
    assert clock.now().timestamp() == pytest.approx(told, abs=1)


def test_a_clock_that_was_never_set_tells_no_time() -> None:
    with pytest.raises(RuntimeError, match="never asked"):
        RedisClock().time()


def test_it_goes_on_without_redis(steady: Steady) -> None:
    clock = RedisClock()
    clock.learn(1000.0, 5_000_000.0, 1000.0)
    steady.now = 1060.0
    assert clock.time() == 5_000_060.0


def test_a_slow_answer_does_not_move_it(steady: Steady) -> None:
    clock = RedisClock()
    clock.learn(999.99, 5_000_000.0, 1000.01)
    # Redis was frozen for 20 s, and read its clock at the end of them.
    clock.learn(1000.0, 5_000_020.0, 1020.0)
    steady.now = 1020.0
    assert clock.time() == pytest.approx(5_000_020.0, abs=0.02)


def test_a_quicker_answer_makes_it_more_exact(steady: Steady) -> None:
    clock = RedisClock()
    clock.learn(990.0, 5_000_000.0, 1000.0)
    clock.learn(1000.0, 5_000_000.0, 1000.0)
    assert clock.time() == 5_000_000.0


def test_it_follows_when_the_clock_of_redis_is_set(steady: Steady) -> None:
    clock = RedisClock()
    clock.learn(1000.0, 5_000_000.0, 1000.0)
    clock.learn(1000.0, 5_003_600.0, 1000.2)
    assert clock.time() == pytest.approx(5_003_600.0, abs=0.2)


@hypothesis_settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.floats(0, 30), st.floats(0, 1), st.floats(0, 60), st.floats(-3600, 3600)),
        min_size=1,
    )
)
def test_it_is_never_off_by_more_than_the_latest_answer_took(
    answers: list[tuple[float, float, float, float]],
) -> None:
    clock, steady, offset = RedisClock(), 0.0, 1e9
    for took, share, pause, step in answers:
        offset += step
        clock.learn(steady, steady + took * share + offset, steady + took)
        assert clock._offset is not None
        assert abs(clock._offset - offset) <= took + 1e-5
        steady += took + pause


def test_callers_at_the_same_time_ask_once(settings: Settings) -> None:
    async def main() -> int:
        connection = connect_async(settings)
        clock = AsyncRedisClock(connection)
        try:
            before = await asked(connection)
            await asyncio.gather(*(clock.refresh() for _ in range(50)))
            await clock.refresh()
            return await asked(connection) - before
        finally:
            await connection.aclose()

    assert asyncio.run(main()) == 1


def test_callers_share_the_error_of_a_redis_that_is_away(settings: Settings) -> None:
    away = settings.model_copy(update={"redis_url": f"unix://{settings.data_dir}/none.sock"})

    async def main() -> list[object]:
        connection = connect_async(away)
        clock = AsyncRedisClock(connection)
        try:
            return await asyncio.gather(
                *(clock.refresh() for _ in range(50)), return_exceptions=True
            )
        finally:
            await connection.aclose()

    errors = asyncio.run(main())
    assert isinstance(errors[0], redis.RedisError)
    assert {id(error) for error in errors} == {id(errors[0])}


async def asked(connection: redis.asyncio.Redis) -> int:
    """How often Redis was asked for its time."""
    stats = await connection.info("commandstats")
    return int(stats.get("cmdstat_time", {"calls": 0})["calls"])
