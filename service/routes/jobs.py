"""``/v1/jobs``: what became of a request."""

from typing import Annotated

from fastapi import APIRouter, Path, Query, Request
from starlette.responses import Response

from koala.errors import InvalidRequest, JobNotFound
from koala.queue import JOB_ID
from service.errors import ErrorBody
from service.gateway import GatewayDep
from service.render import job_body, json_response, retry_after
from service.requests import Must
from service.responses import Job, JobList
from service.waiting import is_over, wait_for_end

router = APIRouter(
    prefix="/v1/jobs",
    tags=["jobs"],
    responses={
        400: {"model": ErrorBody, "description": "A parameter cannot be honoured."},
        404: {"model": ErrorBody, "description": "There is no such job."},
        503: {"model": ErrorBody, "description": "The queue cannot be reached."},
    },
)


@router.get("", response_model=JobList)
async def list_jobs(
    request: Request,
    gateway: GatewayDep,
    limit: Annotated[
        int,
        Query(ge=1, le=100, description="Most jobs of a page."),
        Must("a whole number from 1 to 100"),
    ] = 20,
    after: Annotated[str | None, Query(description="Id of the job that the page follows.")] = None,
) -> Response:
    """The newest jobs first. Images are given as URLs, whatever the request asked for."""
    # One more than asked for tells whether there is another page.
    records = await gateway.queue.newest(limit + 1, after)
    base_url = gateway.base_url(request)
    page = [
        await job_body(gateway, record, base_url, eta=None, inline=False)
        for record in records[:limit]
    ]
    return json_response(
        JobList(
            data=page,
            first_id=page[0].id if page else None,
            last_id=page[-1].id if page else None,
            has_more=len(records) > limit,
        )
    )


@router.get("/{id}", response_model=Job)
async def get_job(
    request: Request,
    gateway: GatewayDep,
    job_id: Annotated[str, Path(alias="id", description="The job.")],
    wait: Annotated[
        float,
        Query(
            ge=0, allow_inf_nan=False, description="Seconds to wait for the job's end, if need be."
        ),
        Must("a number of seconds, 0 or more"),
    ] = 0.0,
) -> Response:
    """A job as it stands, or as it ends within `wait` seconds."""
    longest = gateway.settings.sync_timeout
    if wait > longest:
        raise InvalidRequest(f"`wait` must be at most {longest:g} seconds.", param="wait")
    if not JOB_ID.fullmatch(job_id):
        # RQ keeps other things under names like a job's; they are nobody's business.
        raise JobNotFound(f"There is no job {job_id[:80]!r}.", param="id")
    with gateway.hub.watch(job_id) as may_have_ended:
        record = await gateway.queue.get(job_id)
        if wait and not is_over(record):
            ended = await wait_for_end(gateway, request, job_id, may_have_ended, wait)
            record = ended or await gateway.queue.get(job_id)
    eta = await gateway.fleet.eta(record)
    body = await job_body(gateway, record, gateway.base_url(request), eta=eta)
    return json_response(body, headers={} if is_over(record) else retry_after(eta))
