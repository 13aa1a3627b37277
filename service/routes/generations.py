"""``POST /v1/images/generations``: a prompt goes in, images come out."""

import asyncio
from typing import Annotated, Final

import redis
import structlog
from anyio import to_thread
from fastapi import APIRouter, Depends, Header, Request
from starlette.responses import Response

from koala.errors import ImageNotFound, MethodNotAllowed, UnsupportedMediaType
from koala.queue import new_job_id
from koala.spec import JobRecord, JobSpec
from service.answer_headers import add_to_answer
from service.auth import AUTH_RESPONSES, GeneratorDep, KeyedRoute, Principal
from service.errors import ClientGone, ErrorBody
from service.gateway import Gateway, GatewayDep
from service.image_stream import image_events
from service.outcomes import failure, images_gone, not_ready
from service.planning import plan
from service.preferences import Preference, parse
from service.rate_limits import caller
from service.render import images_body, job_body, json_response, retry_after
from service.requests import GenerationRequest
from service.responses import ImagesResponse, Job
from service.streams import event_stream
from service.submitting import idempotency, submit
from service.waiting import follow, is_over, job_headers, wait_for_end

log = structlog.get_logger()

router = APIRouter(tags=["images"], route_class=KeyedRoute)

_PREFER_HELP: Final = (
    "RFC 7240: `respond-async` answers 202 at once, `wait=N` after at most N seconds."
)
_IDEMPOTENCY_HELP: Final = (
    "A name of yours for this request, up to 255 printable ASCII characters: sent again within "
    "24 hours, it gives the same job. A job with a key goes on when you hang up."
)

# A worker says what became of a late job within a beat or two.
_DEADLINE_GRACE: Final = 5.0


async def _require_json(request: Request) -> None:
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json" and not (
        media_type.startswith("application/") and media_type.endswith("+json")
    ):
        raise UnsupportedMediaType(
            "The request body must be JSON, sent with `Content-Type: application/json`."
        )


async def _count(request: Request, gateway: GatewayDep, principal: GeneratorDep) -> None:
    address = request.client.host if request.client else None
    allowance = await gateway.rate_limits.spend(
        caller(principal.name, address), principal.rate_limit
    )
    if allowance is not None:
        add_to_answer(request, allowance.headers())


@router.post(
    "/v1/images/generations",
    response_model=ImagesResponse,
    dependencies=[Depends(_count), Depends(_require_json)],
    responses={
        200: {
            "content": {"text/event-stream": {}},
            "description": "The finished images; with `stream`, events of them.",
        },
        202: {"model": Job, "description": "The job goes on; its address is in `Location`."},
        400: {
            "model": ErrorBody,
            "description": "A field cannot be honoured, a LoRA cannot be used, or the safety check "
            "withholds the images.",
        },
        **AUTH_RESPONSES,
        404: {
            "model": ErrorBody,
            "description": "The model is not served here, or the images of a request that is sent "
            "again are gone.",
        },
        409: {"model": ErrorBody, "description": "The job was cancelled."},
        413: {"model": ErrorBody, "description": "The body is too large."},
        415: {"model": ErrorBody, "description": "The body is not JSON."},
        422: {"model": ErrorBody, "description": "The Idempotency-Key had another body."},
        429: {
            "model": ErrorBody,
            "description": "The queue is full, or the rate limit is reached.",
        },
        500: {"model": ErrorBody, "description": "The job failed."},
        503: {"model": ErrorBody, "description": "The queue cannot be reached."},
        504: {"model": ErrorBody, "description": "The wait or the deadline is over."},
    },
)
async def generate(
    request: Request,
    body: GenerationRequest,
    gateway: GatewayDep,
    principal: GeneratorDep,
    prefer: Annotated[list[str] | None, Header(description=_PREFER_HELP)] = None,
    idempotency_key: Annotated[str | None, Header(description=_IDEMPOTENCY_HELP)] = None,
) -> Response:
    """Draw images and wait for them, unless `Prefer` says otherwise."""
    body = body.model_copy(update={"priority": principal.priority_for(body.priority)})
    spec = await _plan(gateway, request, body, principal)
    if body.deadline_seconds is not None:
        await gateway.clock.refresh()
        deadline = gateway.clock.time() + body.deadline_seconds
        spec = spec.model_copy(update={"deadline": deadline})
    preference = parse(prefer or ())
    seconds = preference.seconds(gateway.settings.sync_timeout)
    job_id, ended = new_job_id(), None
    with gateway.hub.watch(job_id) as may_have_ended:
        submitted = await submit(
            gateway,
            spec,
            job_id,
            principal,
            idempotency=idempotency(idempotency_key, body),
            kept=seconds == 0 and not body.stream,
        )
        record = submitted.record
        if body.stream:
            base_url = gateway.base_url(request)
            patience = _patience(gateway, record.spec, gateway.settings.sync_timeout)
            frames = image_events(gateway, record, base_url, patience)
            return event_stream(frames, job_headers(record.id))
        if submitted.is_new:
            wait = _patience(gateway, spec, seconds)
            ended = await _wait(gateway, request, record, may_have_ended, wait)
    headers = {}
    if not submitted.is_new:
        headers["Idempotent-Replayed"] = "true"
        patience = _patience(gateway, record.spec, seconds)
        record = await follow(gateway, request, record.id, patience)
        ended = record if is_over(record) else None
    if ended is not None:
        return await _finished(gateway, request, ended, preference, headers)
    if not preference.accepts_job:
        raise await not_ready(gateway, record)
    return await _unfinished(gateway, request, record, preference, headers)


@router.head("/v1/images/generations", include_in_schema=False)
@router.get("/v1/images/generations", include_in_schema=False)
async def refuse_get() -> None:
    """Keep the address from being taken for an image named "generations"."""
    raise MethodNotAllowed(
        "Images are generated by POST /v1/images/generations.", headers={"Allow": "POST"}
    )


async def _plan(
    gateway: Gateway, request: Request, body: GenerationRequest, principal: Principal
) -> JobSpec:
    base_url = gateway.base_url(request)
    arguments = (body, gateway.card, gateway.settings, gateway.loras, principal.owner, base_url)
    # Files of LoRAs are looked at.
    return await to_thread.run_sync(plan, *arguments) if body.lora else plan(*arguments)


def _patience(gateway: Gateway, spec: JobSpec, seconds: float) -> float:
    """``seconds``, or until shortly after the deadline, when the job should have failed."""
    if spec.deadline is None:
        return seconds
    return min(seconds, max(0.0, spec.deadline - gateway.clock.time()) + _DEADLINE_GRACE)


async def _wait(
    gateway: Gateway, request: Request, record: JobRecord, event: asyncio.Event, seconds: float
) -> JobRecord | None:
    try:
        return await wait_for_end(gateway, request, record.id, event, seconds)
    except ClientGone:
        gateway.withdrawals.add(record.id, if_abandoned=True)
        raise


async def _finished(
    gateway: Gateway,
    request: Request,
    record: JobRecord,
    preference: Preference,
    headers: dict[str, str],
) -> Response:
    headers = headers | job_headers(record.id)
    if record.result is None:
        raise failure(record)
    headers |= _applied(gateway, preference, finished=True)
    try:
        body = await images_body(gateway, record, gateway.base_url(request))
    except ImageNotFound as error:
        raise images_gone(record, error) from None
    return json_response(body, headers=headers)


async def _unfinished(
    gateway: Gateway,
    request: Request,
    record: JobRecord,
    preference: Preference,
    headers: dict[str, str],
) -> Response:
    eta = None
    try:
        record = await gateway.queue.get(record.id)
        eta = await gateway.forecasts.eta(record)
    except redis.RedisError as error:
        # The job is admitted: an error now would make the client send it again.
        log.warning("an admitted job cannot be read", job=record.id, error=str(error))
    headers = headers | job_headers(record.id) | retry_after(eta)
    headers |= _applied(gateway, preference, finished=False)
    body = await job_body(gateway, record, gateway.base_url(request), eta=eta)
    return json_response(body, 202, headers)


def _applied(gateway: Gateway, preference: Preference, *, finished: bool) -> dict[str, str]:
    applied = preference.applied(gateway.settings.sync_timeout, finished=finished)
    return {"Preference-Applied": applied} if applied else {}
