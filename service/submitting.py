"""Handing a job to the queue on behalf of a request."""

import hashlib
import math
import re
from typing import Final

import redis
import structlog

from koala.errors import InvalidRequest, QueueFull
from koala.queue import Submitted
from koala.spec import JobSpec
from koala.submission import Idempotency
from koala.trail import CURRENT
from service.auth import Principal
from service.gateway import Gateway
from service.requests import GenerationRequest

log = structlog.get_logger()

_KEY: Final = re.compile(r"[\x20-\x7e]{1,255}")

# The `openai` client does not wait any longer than two minutes.
_LONGEST_RETRY_AFTER: Final = 120
# Where the pace of the workers is not known yet.
_USUAL_RETRY_AFTER: Final = 5
# Who was refused comes back when this part of the queue should be done.
_SHARE_TO_WAIT: Final = 0.1


def idempotency(key: str | None, body: GenerationRequest) -> Idempotency | None:
    """What an ``Idempotency-Key`` stands for.

    Raises:
        InvalidRequest: The key is malformed.
    """
    if key is None:
        return None
    if not _KEY.fullmatch(key):
        raise InvalidRequest(
            "`Idempotency-Key` must be 1 to 255 printable ASCII characters.",
            param="Idempotency-Key",
        )
    # Defaults that are spelled out do not make another request.
    canonical = body.model_dump_json(exclude_none=True)
    return Idempotency(key, hashlib.sha256(canonical.encode()).hexdigest())


async def submit(
    gateway: Gateway,
    spec: JobSpec,
    job_id: str,
    principal: Principal,
    *,
    idempotency: Idempotency | None,
    kept: bool,
) -> Submitted:
    """Put a job into the queue, and count what the queue said.

    Raises:
        QueueFull: It is full; says when to come back.
        IdempotencyConflict: The key stands for another body.
        redis.RedisError: Redis does not answer. The job is withdrawn in case it got in, unless
            the client can come back for it with its key.
    """
    submitted_jobs = gateway.metrics.jobs_submitted
    try:
        submitted = await gateway.queue.submit(
            spec,
            job_id,
            owner_limit=_owner_limit(gateway, principal),
            idempotency=idempotency,
            kept=kept,
            trail=CURRENT.get(),
        )
    except QueueFull as full:
        submitted_jobs.labels("full").inc()
        full.retry_after = await _retry_after(gateway, full.waiting, spec)
        raise
    except redis.RedisError:
        if idempotency is None:
            gateway.withdrawals.add(job_id, if_abandoned=False)
        raise
    submitted_jobs.labels("admitted" if submitted.is_new else "known").inc()
    if submitted.is_new:
        gateway.ledger.begin(submitted.record)
    # For the request's own log line.
    structlog.contextvars.bind_contextvars(job_id=submitted.record.id)
    return submitted


def _owner_limit(gateway: Gateway, principal: Principal) -> int | None:
    if not principal.name:
        return None
    return principal.max_queued or gateway.settings.max_queued_per_key


async def _retry_after(gateway: Gateway, waiting: int, spec: JobSpec) -> float:
    """Seconds until a part of the queue is done, if its jobs are like the one refused."""
    try:
        seconds = await gateway.fleet.seconds_to_draw(math.ceil(waiting * _SHARE_TO_WAIT) * spec.n)
    except redis.RedisError as error:
        log.warning("the workers' pace cannot be read", error=str(error))
        seconds = None
    return min(math.ceil(seconds or _USUAL_RETRY_AFTER), _LONGEST_RETRY_AFTER)
