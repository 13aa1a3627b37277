"""A job's course as Server-Sent Events, for those who watch it."""

import json
from collections.abc import AsyncIterator
from typing import Any, Final

import redis
import structlog
from fastapi.sse import EventSourceResponse, format_sse_event

from koala.errors import KoalaError
from koala.events import EventType, JobEvent
from koala.spec import JobRecord, Progress
from koala.states import JobState
from service.gateway import Gateway
from service.render import job_body

log = structlog.get_logger()

# Proxies take silence of a minute for death.
HEARTBEAT_SECONDS: Final = 15.0
HEARTBEAT: Final = format_sse_event(comment="still here")

# How soon a browser comes back to a gateway that has just ended, in milliseconds.
_RETRY: Final = 1000

_HEADERS: Final = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


def event_stream(
    frames: AsyncIterator[bytes], headers: dict[str, str] | None = None
) -> EventSourceResponse:
    """The response that sends ``frames``; proxies are asked not to hold them back."""
    return EventSourceResponse(frames, headers=_HEADERS | (headers or {}))


def frame(kind: str, data: dict[str, Any], event_id: str | None = None) -> bytes:
    """One event on the wire."""
    text = json.dumps(data, separators=(",", ":"))
    return format_sse_event(data_str=text, event=kind, id=event_id)


async def job_events(
    gateway: Gateway, record: JobRecord, base_url: str, after: str | None
) -> AsyncIterator[bytes]:
    """Frames of a job's events: what was, what comes, and the job as it ended.

    Args:
        gateway: The application's parts.
        record: The job as it stands.
        base_url: Base of image URLs.
        after: The id of the last event that the client has seen.
    """
    yield format_sse_event(retry=_RETRY)
    async for event in gateway.feeds.follow(record.id, after, HEARTBEAT_SECONDS):
        if event is None:
            yield HEARTBEAT
            event = await untold_end(gateway, record.id)
            if event is None:
                continue
        data = {"type": event.type.value, "job_id": record.id}
        if event.type.is_terminal:
            data |= await _end(gateway, record.id, base_url)
        else:
            data |= event.data | await _eta(gateway, record, event)
        yield frame(event.type, data, event.id or None)
        if event.type.is_terminal:
            return
    yield frame("shutdown", {"type": "shutdown", "job_id": record.id})


async def untold_end(gateway: Gateway, job_id: str) -> JobEvent | None:
    """The end of a job that no event told of: RQ's own clean-up gave it up, or it expired."""
    try:
        states = await gateway.queue.states([job_id])
    except redis.RedisError as error:
        log.warning("a watched job cannot be read", job=job_id, error=str(error))
        return None
    match states[job_id]:
        case JobState.COMPLETED:
            return JobEvent(EventType.COMPLETED, {})
        case JobState.FAILED | None:
            return JobEvent(EventType.FAILED, {})
        case JobState.CANCELLED:
            return JobEvent(EventType.CANCELLED, {})
        case _:
            return None


async def _eta(gateway: Gateway, record: JobRecord, event: JobEvent) -> dict[str, Any]:
    """Seconds until the job ends, as of an event that says where it stands."""
    match event.type:
        case EventType.POSITION:
            now = {"state": "queued", "position": event.data["position"]}
        case EventType.STEP:
            now = {"state": "in_progress", "progress": Progress.told(event.data)}
        case _:
            return {}
    try:
        eta = await gateway.forecasts.eta(record.model_copy(update=now))
    except redis.RedisError as error:
        log.warning("the workers' pace cannot be read", error=str(error))
        eta = None
    return {"eta_seconds": None if eta is None else round(eta, 2)}


async def _end(gateway: Gateway, job_id: str, base_url: str) -> dict[str, Any]:
    try:
        record = await gateway.queue.get(job_id)
    except KoalaError as error:
        return error.body()
    body = await job_body(gateway, record, base_url, eta=None, inline=False)
    return {"job": body.model_dump(mode="json")}
