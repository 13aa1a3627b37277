"""When a webhook that failed is tried again, and how many go to one host at once."""

from datetime import UTC, datetime

import pytest

from service.webhooks.lanes import WIDTH, Lanes
from service.webhooks.pace import Pace
from service.webhooks.sender import _retry_after

HOUR = 3600.0


def test_delays_grow_from_seconds_to_hours_within_the_day_that_jobs_are_kept() -> None:
    delays = [Pace(jitter=0).delay(attempt) for attempt in range(1, 9)]
    assert delays == sorted(delays, key=lambda delay: delay or 0.0)
    assert delays[0] == 5
    assert 16 * HOUR < 1.1 * sum(delay or 0.0 for delay in delays) < 24 * HOUR
    assert Pace().delay(9) is None


def test_what_failed_together_does_not_come_back_together() -> None:
    delays = [Pace(delays=(100.0,)).delay(1) for _ in range(200)]
    assert len(set(delays)) > 190
    assert all(90 <= (delay or 0.0) <= 110 for delay in delays)


@pytest.mark.parametrize(("asked", "delay"), [(None, 5), (1.0, 5), (60.0, 60), (1e9, 24 * HOUR)])
def test_a_receiver_can_ask_for_longer_but_neither_shorter_nor_for_ever(
    asked: float | None, delay: float
) -> None:
    assert Pace(jitter=0).delay(1, asked) == delay


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("120", 120),
        (" 0 ", 0),
        ("9" * 400, float("inf")),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0),
        ("Wed, 21 Oct 2015 07:28:00", 0),
        ("", None),
        ("soon", None),
        ("-3", None),
        ("1e3", None),
        ("NaN", None),
        ("\xb2", None),
        ("Wed, 21 Oct 99999999999999999999 07:28:00 GMT", None),
        ("Wed, 45 Oct 2015 07:28:00 GMT", None),
    ],
)
def test_a_retry_after_is_seconds_or_a_date_and_anything_else_is_none(
    text: str, seconds: float | None
) -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    assert _retry_after([(b"Retry-After", text.encode("latin-1"))], now) == seconds


def test_a_date_is_held_against_the_receivers_own_and_else_against_ours() -> None:
    now = datetime(2015, 10, 21, 7, 0, tzinfo=UTC)
    asked = (b"Retry-After", b"Wed, 21 Oct 2015 07:28:00 GMT")
    assert _retry_after([asked], now) == 28 * 60
    assert _retry_after([asked, (b"Date", b"Wed, 21 Oct 2015 07:27:00 GMT")], now) == 60


def test_no_receiver_can_have_more_attempts_than_there_are() -> None:
    assert Pace(delays=(1.0,)).delay(2, retry_after=60.0) is None


def test_those_that_find_no_room_come_back_one_after_the_other_at_the_hosts_pace() -> None:
    lanes = Lanes()
    assert [lanes.enter("slow") for _ in range(WIDTH)] == [0] * WIDTH
    lanes.leave("slow", 12.0)
    assert lanes.enter("slow") == 0
    turns = [lanes.enter("slow") for _ in range(3)]
    assert turns == pytest.approx([3, 6, 9], abs=0.1)
    assert lanes.enter("quick") == 0


def test_nobody_stands_in_line_for_more_than_minutes() -> None:
    lanes = Lanes()
    for _ in range(WIDTH):
        lanes.enter("dead")
    lanes.leave("dead", 15.0)
    lanes.enter("dead")
    assert max(lanes.enter("dead") for _ in range(1000)) == pytest.approx(300, abs=1)


def test_a_host_without_attempts_is_forgotten() -> None:
    lanes = Lanes()
    for _ in range(WIDTH + 1):
        lanes.enter("slow")
    for _ in range(WIDTH):
        lanes.leave("slow", 15.0)
    assert not lanes._under_way and not lanes._pace and not lanes._end_of_line
