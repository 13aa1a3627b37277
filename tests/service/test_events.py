"""Watching a job: Server-Sent Events of what was and what comes."""

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from koala.connections import connect_async
from koala.events import MAX_EVENTS
from koala.keys import Keys
from koala.settings import Settings
from service.feeds import Feeds
from tests.service.fakes import FakeWorker, Served, serving, wait_until
from tests.service.test_waiting import post


@dataclass(frozen=True)
class Event:
    """One event as a browser gets it."""

    type: str
    data: dict[str, Any]
    id: str | None


def parse(lines: Iterator[str]) -> Iterator[Event]:
    """Events as the HTML standard reads them."""
    fields: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        if line and name:
            fields[name] = value.removeprefix(" ")
        elif not line and "data" in fields:
            yield Event(fields["event"], json.loads(fields["data"]), fields.get("id"))
            fields = {}
        elif not line:
            fields = {}


def watch(base_url: str, job_id: str, after: str | None = None) -> list[Event]:
    """All events up to the end of the stream."""
    headers = {} if after is None else {"Last-Event-ID": after}
    url = f"{base_url}/v1/jobs/{job_id}/events"
    # Certificates, which nothing here needs, would take most of the time of many listeners.
    with httpx.stream("GET", url, headers=headers, timeout=120, verify=False) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.headers["cache-control"] == "no-store"
        return list(parse(response.iter_lines()))


@contextmanager
def watching(served: Served, job_id: str, count: int = 1) -> Iterator[list[Future[list[Event]]]]:
    """So many listeners, who all listen already."""
    with ThreadPoolExecutor(count) as pool:
        listeners = [pool.submit(watch, served.base_url, job_id) for _ in range(count)]
        try:
            wait_until(lambda: served.gateway.feeds.listeners == count, 60)
            yield listeners
        except BaseException:
            # The pool waits for them, and they for an end that will not come.
            served.gateway.feeds.dismiss()
            raise


def types(events: list[Event]) -> list[str]:
    return [event.type for event in events if event.type != "position"]


def submit(served: Served, **fields: Any) -> str:
    job_id: str = post(served, "respond-async", **fields).json()["id"]
    return job_id


def test_a_listener_gets_what_was_and_what_comes(served: Served, worker: FakeWorker) -> None:
    job_id = submit(served, previews=2, n=2)
    with watching(served, job_id) as [listener]:
        worker.take()
        worker.step(job_id, 1, 2)
        worker.preview(job_id, 0, image=1)
        worker.step(job_id, 10, 10)
        worker.finish(job_id)
        events = listener.result(120)

    assert types(events) == ["queued", "step", "preview", "step", "completed"]
    step, preview, end = (
        next(e for e in events if e.type == t) for t in types(events)[1:3] + types(events)[4:]
    )
    assert step.data == {
        "type": "step",
        "job_id": job_id,
        "step": 3,
        "image_steps": [1, 2],
        "steps": 20,
        "eta_seconds": None,
    }
    assert (preview.data["image"], preview.data["preview"]) == (1, 0)
    assert end.data["job"] == served.http.get(f"/v1/jobs/{job_id}").json()
    assert [image["url"] for image in end.data["job"]["result"]["data"]]
    wait_until(lambda: served.gateway.feeds.listeners == 0)


def test_who_comes_late_gets_the_past_and_the_end(served: Served, worker: FakeWorker) -> None:
    job_id = submit(served)
    worker.take()
    worker.step(job_id, 5)
    worker.finish(job_id)
    assert types(watch(served.base_url, job_id)) == ["queued", "step", "completed"]


def test_who_was_cut_off_goes_on_where_it_was(served: Served, worker: FakeWorker) -> None:
    job_id = submit(served)
    worker.take()
    for step in (1, 2, 3):
        worker.step(job_id, step)
    worker.finish(job_id)
    seen = watch(served.base_url, job_id)

    rest = watch(served.base_url, job_id, after=seen[2].id)

    # The job in the last event is rendered anew, and expires in fewer seconds.
    assert [(e.type, e.id) for e in rest] == [(e.type, e.id) for e in seen[3:]]
    assert [event.data.get("step") for event in rest] == [3, None]


def follow_together(settings: Settings, job_id: str, after: list[str | None]) -> list[list[str]]:
    """Ids of the events up to its end that listeners of one gateway get who all come at once."""

    async def listen(feeds: Feeds, known: str | None) -> list[str]:
        return [event.id async for event in feeds.follow(job_id, known) if event]

    async def main() -> list[list[str]]:
        connection = connect_async(settings)
        feeds = Feeds(connection, Keys(settings.queue))
        try:
            async with asyncio.timeout(120):
                return await asyncio.gather(*(listen(feeds, known) for known in after))
        finally:
            await feeds.close()
            await connection.aclose()

    return asyncio.run(main())


def test_all_who_come_back_together_go_on_where_each_of_them_was(
    served: Served, worker: FakeWorker
) -> None:
    job_id = submit(served)
    worker.take()
    for step in (1, 2, 3):
        worker.step(job_id, step)
    worker.finish(job_id)
    seen = [event.id for event in watch(served.base_url, job_id)]

    rests = follow_together(served.settings, job_id, [seen[2], seen[2], seen[0], None])

    assert rests == [seen[3:], seen[3:], seen[1:], seen]


def test_events_of_a_watched_job_are_bounded_and_none_is_told_twice(
    served: Served, worker: FakeWorker
) -> None:
    job_id = submit(served)
    with watching(served, job_id) as [listener]:
        worker.take()
        feed = served.gateway.feeds._feeds[job_id]
        for step in range(300):
            worker.step(job_id, step)
            wait_until(
                lambda step=step: bool(feed.events) and feed.events[-1].data.get("step") == step
            )
        assert len(feed.events) <= 2 * MAX_EVENTS
        with ThreadPoolExecutor(1) as pool:
            late = pool.submit(watch, served.base_url, job_id)
            wait_until(lambda: feed.listeners == 2)
            worker.finish(job_id)
            told, told_late = listener.result(120), late.result(120)

    steps = [event.data["step"] for event in told if event.type == "step"]
    assert steps == list(range(300))
    steps = [event.data["step"] for event in told_late if event.type == "step"]
    assert steps == list(range(300 - len(steps), 300)) and len(steps) >= MAX_EVENTS
    assert told[-1].type == told_late[-1].type == "completed"


@pytest.mark.parametrize("after", ["nonsense", "", "99999999999999999999-x"])
def test_an_event_id_that_never_was_means_from_the_beginning(
    served: Served, worker: FakeWorker, after: str
) -> None:
    job_id = submit(served)
    worker.finish(worker.take())
    assert types(watch(served.base_url, job_id, after)) == ["queued", "completed"]


def test_the_position_in_the_queue_is_told_as_it_changes(
    served: Served, worker: FakeWorker
) -> None:
    first, second, third = (submit(served) for _ in range(3))
    with watching(served, third) as [listener]:
        feed = served.gateway.feeds._feeds[third]
        wait_until(lambda: feed.is_queued and feed.position == 2)
        worker.finish(worker.take())
        wait_until(lambda: feed.position == 1)
        worker.finish(worker.take())
        wait_until(lambda: feed.position == 0)
        worker.finish(worker.take())
        events = listener.result(120)

    positions = [event for event in events if event.type == "position"]
    assert [event.data["position"] for event in positions] == [2, 1, 0]
    assert {event.id for event in positions} == {None}
    assert first != second


def test_how_long_it_will_take_is_told_with_steps_and_positions(
    served: Served, worker: FakeWorker
) -> None:
    size = {"width": 64, "height": 64, "max_rows": 2, "step_seconds": {2: 0.5}}
    worker.advertise(sizes=[size])
    began = time.monotonic()
    ahead, job_id = submit(served), submit(served)
    with watching(served, job_id) as [listener]:
        feed = served.gateway.feeds._feeds[job_id]
        wait_until(lambda: feed.is_queued and feed.position == 1)
        worker.finish(worker.take())
        worker.take()
        time.sleep(0.6)
        looked_at = served.gateway.forecasts._look.taken_at
        worker.step(job_id, 4)
        # Of a job that has ended no look at the queue tells anything.
        wait_until(lambda: served.gateway.forecasts._look.taken_at > looked_at)
        worker.finish(job_id)
        events = listener.result(120)

    [told] = [event.data["eta_seconds"] for event in events if event.type == "step"]
    [first, *_] = [event for event in events if event.type == "position"]
    # One image at a time, in ten steps of half a second.
    passed = time.monotonic() - began
    assert 10 - passed - 0.9 <= first.data["eta_seconds"] <= 10.9
    assert 3 - passed - 0.9 <= told <= 3.9
    assert ahead != job_id


@pytest.mark.parametrize("end", ["fail", "cancel"])
def test_every_end_is_told_with_the_job(served: Served, worker: FakeWorker, end: str) -> None:
    job_id = submit(served)
    with watching(served, job_id) as [listener]:
        getattr(worker, end)(worker.take())
        last = listener.result(120)[-1]
    assert last.type == {"fail": "failed", "cancel": "cancelled"}[end]
    assert last.data["job"]["status"] == last.type


def test_an_end_that_no_event_told_of_comes_with_the_heartbeat(
    served: Served, worker: FakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.streams.HEARTBEAT_SECONDS", 0.2)
    job_id = submit(served)
    with watching(served, job_id) as [listener]:
        worker.finish(worker.take(), silently=True)
        assert types(listener.result(120))[-1] == "completed"


def test_silence_is_broken_by_comments(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.streams.HEARTBEAT_SECONDS", 0.1)
    job_id = submit(served)
    url = f"{served.base_url}/v1/jobs/{job_id}/events"
    with httpx.stream("GET", url, timeout=120) as response:
        comments = (line for line in response.iter_lines() if line.startswith(":"))
        assert [next(comments) for _ in range(3)] == [": still here"] * 3


def test_listening_goes_on_after_the_subscription_was_cut(
    served: Served, worker: FakeWorker
) -> None:
    job_id = submit(served)
    with watching(served, job_id) as [listener]:
        worker.take()
        wait_until(lambda: worker.redis.client_kill_filter(_type="pubsub") >= 2)
        worker.step(job_id, 5)
        worker.finish(job_id)
        assert types(listener.result(120)) == ["queued", "step", "completed"]


def test_there_are_no_events_of_what_is_no_job(api: Served) -> None:
    for job_id in ("job_" + "0" * 32, "nonsense"):
        response = api.http.get(f"/v1/jobs/{job_id}/events")
        assert response.status_code == 404
        assert response.json()["error"]["code"] == "job_not_found"


def test_a_hundred_listeners_share_one_reader(settings: Settings, worker: FakeWorker) -> None:
    count = 100
    with serving(settings) as served:
        job_id = submit(served)
        with watching(served, job_id, count) as listeners:
            worker.take()
            before = worker.redis.info("commandstats")["cmdstat_xrange"]["calls"]
            for step in range(1, 11):
                worker.step(job_id, step)
            worker.finish(job_id)
            heard = [types(listener.result(120)) for listener in listeners]
            reads = worker.redis.info("commandstats")["cmdstat_xrange"]["calls"] - before

    assert heard == [["queued", *["step"] * 10, "completed"]] * count
    # One for each batch of messages, not one for each listener.
    assert reads < 50
    assert threading.active_count() < 50


def test_those_who_listen_are_told_when_the_gateway_ends(
    served: Served, worker: FakeWorker
) -> None:
    job_id = submit(served)
    with watching(served, job_id) as [listener]:
        served.gateway.dismiss()
        assert listener.result(120)[-1].type == "shutdown"
    assert worker.take() == job_id


def test_a_preview_hides_neither_progress_nor_the_reason_of_a_failure(
    served: Served, worker: FakeWorker
) -> None:
    job_id = submit(served, previews=2)
    worker.take()
    worker.step(job_id, 3)
    worker.preview(job_id, 0)
    assert served.http.get(f"/v1/jobs/{job_id}").json()["progress"] == {"step": 3, "steps": 10}
    worker.fail(job_id)
    worker.preview(job_id, 1)
    error = served.http.get(f"/v1/jobs/{job_id}").json()["error"]
    assert error["code"] == "out_of_memory"
