"""Waiting for a job's end on behalf of one client."""

import asyncio
from contextlib import suppress
from typing import Final

import redis
import structlog
from fastapi import Request
from starlette.exceptions import HTTPException

from koala.errors import QueueUnavailable
from koala.spec import JobRecord
from koala.states import JobState
from service.errors import ClientGone
from service.gateway import Gateway

log = structlog.get_logger()

# What replaces this process is there in seconds.
_RETRY_SECONDS: Final = 2


def job_headers(job_id: str) -> dict[str, str]:
    """The headers that name a job."""
    return {"x-koala-job-id": job_id, "Location": f"/v1/jobs/{job_id}"}


def is_over(record: JobRecord) -> bool:
    """Whether the job can change no more."""
    return JobState(record.state).is_terminal


async def wait_for_end(
    gateway: Gateway, request: Request, job_id: str, may_have_ended: asyncio.Event, seconds: float
) -> JobRecord | None:
    """The job once it has ended, or ``None`` when it has not after ``seconds``.

    ``None`` comes early when this process is about to end, or Redis refuses all writes.

    Args:
        gateway: The application's parts.
        request: The request whose client waits.
        job_id: The job.
        may_have_ended: The hub's event for this job, watched since before the job was looked at.
        seconds: How long to wait.

    Raises:
        ClientGone: The client hung up.
        JobNotFound: The job expired meanwhile.
    """
    if seconds <= 0:
        return None
    deadline = asyncio.get_running_loop().time() + seconds
    gone = asyncio.create_task(_hang_up(request, may_have_ended))
    try:
        with gateway.metrics.waiting_clients.track_inprogress():
            while True:
                async with asyncio.timeout_at(deadline):
                    await may_have_ended.wait()
                may_have_ended.clear()
                if gone.done():
                    raise ClientGone
                record = await _look(gateway, job_id)
                if record is not None and is_over(record):
                    return record
                if gateway.hub.is_dismissed or gateway.hub.is_refused:
                    return None
    except TimeoutError:
        return None
    finally:
        gone.cancel()


async def follow(gateway: Gateway, request: Request, job_id: str, seconds: float) -> JobRecord:
    """A job that exists, as it ends within ``seconds`` or else as it stands.

    Who first asked for it may hang up from now on.

    Raises:
        ClientGone: The client hung up.
        JobNotFound: There is no such job, or it has expired.
    """
    with gateway.hub.watch(job_id) as may_have_ended:
        record = await gateway.queue.get(job_id)
        if not seconds or is_over(record):
            return record
        await gateway.queue.keep(job_id)
        ended = await wait_for_end(gateway, request, job_id, may_have_ended, seconds)
        return ended or await gateway.queue.get(job_id)


def dismissal(job_id: str) -> QueueUnavailable:
    """What a client hears whose image was not ready when this process had to end."""
    # A repeat of the request would draw the same image a second time.
    return QueueUnavailable(
        f"The gateway is shutting down. The job goes on: see /v1/jobs/{job_id}.",
        code="shutting_down",
        retry_after=_RETRY_SECONDS,
        headers=job_headers(job_id) | {"x-should-retry": "false"},
    )


def refusal(job_id: str) -> QueueUnavailable:
    """What a client hears whose job cannot be drawn because Redis refuses all writes."""
    return QueueUnavailable(
        "The queue takes no writes right now: its disk is full or broken. The job goes on when it "
        f"does: see /v1/jobs/{job_id}.",
        retry_after=_RETRY_SECONDS,
        headers=job_headers(job_id) | {"x-should-retry": "false"},
    )


async def _hang_up(request: Request, wake: asyncio.Event) -> None:
    # The body has been read, so what is left to receive is the end of the connection. A body that
    # comes where none belongs and is refused ends the wait in the same way.
    with suppress(HTTPException):
        while (await request.receive())["type"] != "http.disconnect":
            pass
    wake.set()


async def _look(gateway: Gateway, job_id: str) -> JobRecord | None:
    try:
        return await gateway.queue.get(job_id)
    except redis.RedisError as error:
        # The job may well be running on: the hub wakes us again when Redis is back.
        log.warning("a job that may have ended cannot be read", job=job_id, error=str(error))
        return None
