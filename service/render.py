"""From a job's record to the bodies that clients see."""

import base64
import math
from collections.abc import Iterable
from datetime import datetime

from anyio import to_thread
from pydantic import BaseModel
from starlette.responses import Response

from koala.errors import ImageNotFound
from koala.records import UnreadableJob
from koala.spec import JobError, JobRecord
from service.gateway import Gateway
from service.responses import (
    Image,
    ImagesResponse,
    InputTokensDetails,
    Job,
    JobReference,
    Timings,
    TokenUsage,
)
from service.waiting import is_over

_LONGEST_RETRY_AFTER = 30


def json_response(
    body: BaseModel, status: int = 200, headers: dict[str, str] | None = None
) -> Response:
    """A response straight from pydantic's own serializer."""
    return Response(body.model_dump_json(), status, headers, "application/json")


def retry_after(eta: float | None) -> dict[str, str]:
    """When to look at an unfinished job again."""
    seconds = 1 if eta is None else min(max(1, math.ceil(eta)), _LONGEST_RETRY_AFTER)
    return {"Retry-After": str(seconds)}


async def job_body(
    gateway: Gateway, record: JobRecord, base_url: str, *, eta: float | None, inline: bool = True
) -> Job:
    """A job as clients see it; ``inline`` puts images into it where base64 was asked for.

    A completed job whose images are gone has an error in place of the result.
    """
    spec, error, result = record.spec, record.error, None
    if record.result is not None:
        try:
            result = await images_body(gateway, record, base_url, inline=inline)
        except ImageNotFound as gone:
            error = JobError(message=gone.message, code=gone.code or "image_not_found")
    return Job(
        id=record.id,
        status=record.state,
        position=record.position,
        progress=record.progress,
        eta_seconds=None if eta is None else round(eta, 2),
        created_at=_unix(record.created_at),
        started_at=_unix_or_none(record.started_at),
        completed_at=_unix_or_none(record.ended_at) if is_over(record) else None,
        expires_at=_unix_or_none(record.expires_at),
        model=spec.model,
        prompt=spec.prompt,
        negative_prompt=spec.negative_prompt,
        n=spec.n,
        size=f"{spec.width}x{spec.height}",
        quality=spec.quality,
        seed=spec.seed,
        num_inference_steps=spec.num_inference_steps,
        guidance_scale=spec.guidance_scale,
        scheduler=spec.scheduler,
        lora=spec.lora,
        output_format=spec.output_format,
        output_compression=spec.output_compression,
        response_format=spec.response_format,
        safety_identifier=spec.user,
        attempts=record.attempts,
        error=error,
        result=result,
    )


def references(jobs: Iterable[JobRecord | UnreadableJob]) -> list[JobReference]:
    """Those of some jobs that cannot be shown."""
    return [
        JobReference(id=job.id, reason=job.reason) for job in jobs if isinstance(job, UnreadableJob)
    ]


async def images_body(
    gateway: Gateway, record: JobRecord, base_url: str, *, inline: bool = True
) -> ImagesResponse:
    """The images of a completed job.

    Raises:
        ImageNotFound: An image that belongs into the body is gone.
    """
    spec, result = record.spec, record.result
    assert result is not None, "only completed jobs have images"
    ended = record.ended_at or record.created_at
    started = record.started_at or record.created_at
    text_tokens = result.usage.text_tokens
    return ImagesResponse(
        created=_unix(ended),
        data=await _images(gateway, record, base_url, inline=inline),
        output_format=spec.output_format,
        quality=spec.quality,
        size=f"{spec.width}x{spec.height}",
        safety_identifier=spec.user,
        usage=TokenUsage(
            input_tokens=text_tokens,
            input_tokens_details=InputTokensDetails(text_tokens=text_tokens),
            total_tokens=text_tokens,
        ),
        id=record.id,
        model=spec.model,
        seed=spec.seed,
        num_inference_steps=spec.num_inference_steps,
        guidance_scale=spec.guidance_scale,
        scheduler=spec.scheduler,
        lora=spec.lora,
        timings=Timings(
            queued_seconds=_between(record.created_at, started),
            run_seconds=_between(started, ended),
            total_seconds=_between(record.created_at, ended),
            denoise_seconds=round(result.denoise_seconds, 4),
            decode_and_store_seconds=round(result.decode_and_store_seconds, 4),
        ),
        warnings=result.warnings,
    )


async def _images(
    gateway: Gateway, record: JobRecord, base_url: str, *, inline: bool
) -> list[Image]:
    assert record.result is not None
    references = record.result.images
    if not inline or record.spec.response_format == "url":
        return [Image(url=f"{base_url}/v1/images/{ref.name}", seed=ref.seed) for ref in references]
    names = [ref.name for ref in references]
    encoded = await to_thread.run_sync(_read_as_base64, gateway, names)
    gateway.metrics.images_served.labels("b64_json").inc(len(encoded))
    return [
        Image(b64_json=text, seed=ref.seed) for ref, text in zip(references, encoded, strict=True)
    ]


def _read_as_base64(gateway: Gateway, names: list[str]) -> list[str]:
    return [base64.b64encode(gateway.store.get(name)).decode() for name in names]


def _between(start: datetime, end: datetime) -> float:
    # What two machines take for Redis' time may differ a little.
    return round(max(0.0, (end - start).total_seconds()), 4)


def _unix(moment: datetime) -> int:
    return int(moment.timestamp())


def _unix_or_none(moment: datetime | None) -> int | None:
    return None if moment is None else _unix(moment)
