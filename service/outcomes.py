"""What a client hears of a job that did not complete, or not in time."""

from typing import Final

from koala.errors import (
    ContentPolicyViolation,
    DeadlineExceeded,
    ImageNotFound,
    JobCancelled,
    JobFailed,
    KoalaError,
    LoraUnusable,
    WaitTimeout,
)
from koala.lora import LoraError
from koala.spec import JobError, JobRecord
from service.gateway import Gateway
from service.waiting import dismissal, job_headers, refusal

_BY_CODE: Final[dict[str, type[JobFailed]]] = {
    "deadline_exceeded": DeadlineExceeded,
    "content_policy_violation": ContentPolicyViolation,
    "lora_unusable": LoraUnusable,
}


def failure(record: JobRecord) -> KoalaError:
    """Why a job that has ended has no images."""
    headers = job_headers(record.id)
    if record.state == "cancelled":
        return JobCancelled(f"The job {record.id} was cancelled.", headers=headers)
    error = record.error or JobError(message="The job failed and nobody said why.")
    kind = _BY_CODE.get(error.code, JobFailed)
    param = _lora(record, error.message) if kind is LoraUnusable else None
    return kind(error.message, code=error.code, param=param, headers=headers)


def _lora(record: JobRecord, message: str) -> str:
    """The field that names the LoRA of which ``message`` tells."""
    for i, use in enumerate(record.spec.lora):
        if LoraError.is_about(message, use.name):
            return f"lora.{i}.name"
    return "lora"


def images_gone(record: JobRecord, error: ImageNotFound) -> ImageNotFound:
    """Why a request that a completed job answers gets no images any more."""
    return ImageNotFound(
        f"The job {record.id} was completed, but its images are gone: {error.message} Send the "
        "request without its `Idempotency-Key`, or with another one, to draw them again.",
        headers=job_headers(record.id) | {"x-should-retry": "false"},
    )


async def not_ready(gateway: Gateway, record: JobRecord) -> KoalaError:
    """Why a client who waits for nothing but images gets none yet."""
    if gateway.hub.is_dismissed:
        return dismissal(record.id)
    if gateway.hub.is_refused:
        return refusal(record.id)
    headers = job_headers(record.id)
    if record.spec.deadline is not None and gateway.clock.time() > record.spec.deadline:
        # No worker is there to say so.
        await gateway.queue.cancel(record.id)
        return DeadlineExceeded("The deadline passed before the job was done.", headers=headers)
    return WaitTimeout(
        f"The image was not ready within {gateway.settings.sync_timeout:g} s. The job goes on: "
        f"see /v1/jobs/{record.id}.",
        headers=headers,
    )
