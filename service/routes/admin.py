"""``/v1/admin``: workers, queue and jobs of all owners, for who has the scope ``admin``.

Jobs are cancelled as by their owners, at ``POST /v1/jobs/{id}/cancel``.
"""

from typing import Annotated, Literal

from fastapi import APIRouter, Query
from starlette.responses import Response

from koala.spec import JobRecord
from koala.workers import WorkerAd
from service.admin_responses import (
    AdminJob,
    AdminJobList,
    AdminSize,
    AdminSummary,
    AdminWorker,
    AdminWorkerList,
)
from service.auth import AUTH_RESPONSES, AdminDep, KeyedRoute
from service.errors import ErrorBody
from service.gateway import Gateway, GatewayDep
from service.render import json_response, references
from service.requests import Must

router = APIRouter(
    prefix="/v1/admin",
    tags=["admin"],
    route_class=KeyedRoute,
    responses={
        **AUTH_RESPONSES,
        503: {"model": ErrorBody, "description": "The queue cannot be reached."},
    },
)


@router.get("/summary", response_model=AdminSummary)
async def summary(gateway: GatewayDep, _: AdminDep) -> Response:
    """How the whole service stands."""
    ads = await gateway.fleet.alive()
    backlog = await gateway.queue.backlog()
    rates = [ad.images_per_second for ad in ads if ad.images_per_second is not None]
    oldest = backlog.oldest_seconds
    return json_response(
        AdminSummary(
            queued=backlog.queued,
            oldest_queued_seconds=None if oldest is None else round(oldest, 1),
            in_flight=backlog.held,
            workers=len(ads),
            images_last_minute=sum(ad.images_last_minute for ad in ads),
            images_per_second=round(sum(rates), 3) if rates else None,
        )
    )


@router.get("/workers", response_model=AdminWorkerList)
async def list_workers(gateway: GatewayDep, _: AdminDep) -> Response:
    """What each live worker says of itself."""
    ads = await gateway.fleet.alive()
    return json_response(
        AdminWorkerList(data=[_worker(ad) for ad in ads], unreadable=gateway.fleet.unreadable)
    )


@router.get(
    "/jobs",
    response_model=AdminJobList,
    responses={400: {"model": ErrorBody, "description": "A parameter cannot be honoured."}},
)
async def list_unfinished_jobs(
    gateway: GatewayDep,
    _: AdminDep,
    state: Annotated[
        Literal["queued", "in_progress"],
        Query(description="Those that wait, or those that workers hold."),
        Must("queued or in_progress"),
    ],
    limit: Annotated[
        int, Query(ge=1, le=500, description="Most jobs."), Must("a whole number from 1 to 500")
    ] = 100,
) -> Response:
    """Unfinished jobs of all owners: the queue in its order, or what is being drawn."""
    queue = gateway.queue
    read = queue.waiting if state == "queued" else queue.held
    found = await read(limit + 1)
    await gateway.clock.refresh()
    page = found[:limit]
    return json_response(
        AdminJobList(
            data=[
                await _job(gateway, job)
                for job in page
                # It may have gone on to another state between two looks.
                if isinstance(job, JobRecord) and job.state == state
            ],
            unreadable=references(page),
            has_more=len(found) > limit,
        )
    )


def _worker(ad: WorkerAd) -> AdminWorker:
    sizes = [
        AdminSize(
            size=size.name,
            max_rows=size.max_rows,
            step_seconds=size.step_seconds,
            decode_seconds=size.decode_seconds,
            slowness=round(size.slowness, 3),
        )
        for size in ad.sizes
    ]
    shared = ad.model_dump(include=set(AdminWorker.model_fields) - {"started_at", "sizes", "vram"})
    return AdminWorker(
        **shared, started_at=int(ad.started_at.timestamp()), vram=ad.vram, sizes=sizes
    )


async def _job(gateway: Gateway, record: JobRecord) -> AdminJob:
    spec = record.spec
    eta = await gateway.forecasts.eta(record)
    return AdminJob(
        id=record.id,
        status="queued" if record.state == "queued" else "in_progress",
        position=record.position,
        owner=spec.owner or None,
        priority=spec.priority,
        prompt=spec.prompt,
        n=spec.n,
        size=f"{spec.width}x{spec.height}",
        num_inference_steps=spec.num_inference_steps,
        guidance_scale=spec.guidance_scale,
        scheduler=spec.scheduler,
        progress=record.progress,
        eta_seconds=None if eta is None else round(eta, 2),
        created_at=int(record.created_at.timestamp()),
        age_seconds=round(max(0.0, gateway.clock.time() - record.created_at.timestamp()), 1),
        started_at=None if record.started_at is None else int(record.started_at.timestamp()),
        worker=record.worker,
        attempts=record.attempts,
    )
