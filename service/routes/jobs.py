"""``/v1/jobs``: what became of a request."""

from typing import Annotated, Final

from fastapi import APIRouter, Header, Path, Query, Request
from starlette.responses import Response, StreamingResponse

from koala.cancelling import Cancelled
from koala.errors import InvalidRequest
from koala.spec import JobRecord
from service.auth import AUTH_RESPONSES, GeneratorDep, KeyedRoute, ReaderDep
from service.errors import ErrorBody
from service.gateway import Gateway, GatewayDep
from service.ownership import own_job
from service.render import job_body, json_response, references, retry_after
from service.requests import Must
from service.responses import Job, JobList
from service.streams import event_stream, job_events
from service.waiting import follow, is_over

# A running job is stopped between two steps; slower ones are told of as they stand.
_CANCEL_WAIT: Final = 2.0

router = APIRouter(
    prefix="/v1/jobs",
    tags=["jobs"],
    route_class=KeyedRoute,
    responses={
        400: {"model": ErrorBody, "description": "A parameter cannot be honoured."},
        **AUTH_RESPONSES,
        404: {"model": ErrorBody, "description": "There is no such job."},
        503: {"model": ErrorBody, "description": "The queue cannot be reached."},
    },
)


@router.get("", response_model=JobList)
async def list_jobs(
    request: Request,
    gateway: GatewayDep,
    reader: ReaderDep,
    limit: Annotated[
        int,
        Query(ge=1, le=100, description="Most jobs of a page."),
        Must("a whole number from 1 to 100"),
    ] = 20,
    after: Annotated[str | None, Query(description="Id of the job that the page follows.")] = None,
) -> Response:
    """The newest jobs first. Images are given as URLs, whatever the request asked for.

    An API key sees its own jobs, with the scope `admin` everybody's.
    """
    # One more than asked for tells whether there is another page.
    found = await gateway.queue.newest(limit + 1, after, reader.sees)
    base_url, page = gateway.base_url(request), found[:limit]
    return json_response(
        JobList(
            data=[
                await job_body(gateway, job, base_url, eta=None, inline=False)
                for job in page
                if isinstance(job, JobRecord)
            ],
            unreadable=references(page),
            first_id=page[0].id if page else None,
            last_id=page[-1].id if page else None,
            has_more=len(found) > limit,
        )
    )


JobId = Annotated[str, Path(alias="id", description="The job.")]
Wait = Annotated[
    float,
    Query(ge=0, allow_inf_nan=False, description="Seconds to wait for the job's end, if need be."),
    Must("a number of seconds, 0 or more"),
]


@router.get("/{id}", response_model=Job)
async def get_job(
    request: Request, gateway: GatewayDep, reader: ReaderDep, job_id: JobId, wait: Wait = 0.0
) -> Response:
    """A job as it stands, or as it ends within `wait` seconds."""
    _check_wait(gateway, wait)
    record = await own_job(gateway, reader, job_id)
    if wait and not is_over(record):
        record = await follow(gateway, request, job_id, wait)
    return await _answer(gateway, request, record)


@router.post("/{id}/cancel", response_model=Job)
async def cancel_job(
    request: Request,
    gateway: GatewayDep,
    principal: GeneratorDep,
    job_id: JobId,
    wait: Wait = _CANCEL_WAIT,
) -> Response:
    """Cancel a job that waits or is being drawn; a job that has ended stays as it is.

    A running job stops at its next step, and the answer waits for that.
    """
    _check_wait(gateway, wait)
    await own_job(gateway, principal, job_id)
    if await gateway.queue.cancel(job_id) is not Cancelled.ASKED:
        wait = 0.0
    record = await follow(gateway, request, job_id, wait)
    return await _answer(gateway, request, record)


@router.get(
    "/{id}/events",
    response_class=StreamingResponse,
    responses={
        200: {
            "content": {"text/event-stream": {}},
            "description": "Events: queued, position, admitted, step, preview, requeued, "
            "completed, failed, cancelled.",
        }
    },
)
async def watch_job(
    request: Request,
    gateway: GatewayDep,
    reader: ReaderDep,
    job_id: JobId,
    last_event_id: Annotated[
        str | None, Header(description="The last event that you have seen.")
    ] = None,
) -> Response:
    """A job's course as Server-Sent Events: what was, what comes, and the job as it ended."""
    record = await own_job(gateway, reader, job_id)
    if not is_over(record):
        await gateway.queue.keep(job_id)
    return event_stream(job_events(gateway, record, gateway.base_url(request), last_event_id))


def _check_wait(gateway: Gateway, wait: float) -> None:
    longest = gateway.settings.sync_timeout
    if wait > longest:
        raise InvalidRequest(f"`wait` must be at most {longest:g} seconds.", param="wait")


async def _answer(gateway: Gateway, request: Request, record: JobRecord) -> Response:
    eta = await gateway.forecasts.eta(record)
    body = await job_body(gateway, record, gateway.base_url(request), eta=eta)
    return json_response(body, headers={} if is_over(record) else retry_after(eta))
