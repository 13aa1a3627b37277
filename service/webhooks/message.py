"""The body of a webhook."""

from datetime import datetime
from typing import Literal, cast

from pydantic import BaseModel, Field

from koala.spec import JobRecord
from service.gateway import Gateway
from service.render import job_body
from service.responses import Job

MessageType = Literal[
    "image.generation.completed", "image.generation.failed", "image.generation.cancelled"
]


class WebhookMessage(BaseModel):
    """What a `webhook_url` receives when its job has ended; signed as Standard Webhooks has it."""

    type: MessageType = Field(description="How the job ended.")
    timestamp: datetime = Field(description="When the job ended.")
    data: Job = Field(description="The job as `GET /v1/jobs/{id}` gives it, images as URLs.")


async def message_for(gateway: Gateway, record: JobRecord) -> WebhookMessage:
    """The message that tells of the end of a job."""
    return WebhookMessage(
        type=cast(MessageType, f"image.generation.{record.state}"),
        timestamp=record.ended_at or record.created_at,
        data=await job_body(gateway, record, record.spec.base_url, eta=None, inline=False),
    )


async def image_generation_ended(body: WebhookMessage) -> None:
    """Sent to a request's `webhook_url` when the job has ended, whatever came of it.

    `webhook-id` is the job's id, `webhook-timestamp` and `webhook-signature` are as Standard
    Webhooks has them. Any 2xx is success; 410 ends the attempts, everything else repeats them.
    """
