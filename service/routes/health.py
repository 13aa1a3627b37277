"""For machines that watch: alive, ready, metrics."""

import asyncio
import math
from typing import Final

import redis
from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.responses import JSONResponse, PlainTextResponse, Response

from koala.errors import ImageStoreUnavailable, QueueUnavailable
from service.errors import ErrorBody
from service.gateway import Gateway, GatewayDep

router = APIRouter(tags=["health"])

# Whoever asks gives up soon.
_PROBE_SECONDS: Final = 2.0
# A server that restarts is back in seconds, and so is a worker.
_RETRY_SECONDS: Final = 2


@router.head("/healthz", include_in_schema=False)
@router.get("/healthz")
async def healthz() -> Response:
    """Whether this process lives, whatever the rest does."""
    return JSONResponse({"status": "ok"})


@router.head("/readyz", include_in_schema=False)
@router.get(
    "/readyz", responses={503: {"model": ErrorBody, "description": "Not ready; it says why."}}
)
async def readyz(gateway: GatewayDep) -> Response:
    """Whether a request would be served.

    Redis answers, the image store can be written, read and emptied, and a live worker that claims
    jobs has the model.
    """
    trouble, has_worker = await asyncio.gather(gateway.store_health.trouble(), _has_worker(gateway))
    if trouble is not None:
        raise ImageStoreUnavailable(
            f"Not ready: the image store cannot be used ({trouble.rstrip('.')}).",
            retry_after=_RETRY_SECONDS,
        )
    if not has_worker:
        raise QueueUnavailable(
            f"Not ready: no live worker serves {gateway.card.id}.",
            code="no_worker",
            retry_after=_RETRY_SECONDS,
        )
    return JSONResponse({"status": "ready"})


async def _has_worker(gateway: Gateway) -> bool:
    try:
        async with asyncio.timeout(_PROBE_SECONDS):
            await gateway.queue.ping()
            return await gateway.fleet.serves(gateway.card.id)
    except (redis.RedisError, TimeoutError) as error:
        reason = str(error).rstrip(".") or f"silent for {_PROBE_SECONDS:g} s"
        raise QueueUnavailable(
            f"Not ready: Redis does not answer ({reason}).", retry_after=_RETRY_SECONDS
        ) from None


@router.get("/metrics", response_class=PlainTextResponse)
async def metrics(gateway: GatewayDep) -> Response:
    """Metrics in Prometheus's text format."""
    await _measure(gateway)
    return Response(generate_latest(gateway.metrics.registry), media_type=CONTENT_TYPE_LATEST)


async def _measure(gateway: Gateway) -> None:
    up, depth, age, webhooks = 1.0, math.nan, math.nan, math.nan
    alive, ready = math.nan, math.nan
    try:
        depth = await gateway.queue.depth()
        age = await gateway.queue.oldest_seconds()
        ads = await gateway.fleet.alive()
        alive = len(ads)
        ready = sum(ad.serves(gateway.card.id) for ad in ads)
        webhooks = await gateway.redis.zcard(gateway.queue.keys.outbox)
    except redis.RedisError:
        # A gap in these series is the truth; the gateway's own figures are still worth a scrape.
        up = 0.0
    gateway.metrics.redis_up.set(up)
    gateway.metrics.queue_depth.set(depth)
    gateway.metrics.queue_oldest_seconds.set(age)
    gateway.metrics.workers_alive.set(alive)
    gateway.metrics.workers_ready.set(ready)
    gateway.metrics.webhooks_waiting.set(webhooks)
