"""OpenAI's stream of a generation: partial images, then the finished ones."""

import base64
import time
from collections.abc import AsyncIterator
from io import BytesIO
from typing import Any

import redis
from anyio import to_thread
from PIL import Image

from koala.errors import KoalaError, QueueUnavailable
from koala.events import EventType, JobEvent
from koala.spec import JobRecord, JobSpec
from service.gateway import Gateway
from service.outcomes import failure, not_ready
from service.render import images_body
from service.streams import HEARTBEAT, HEARTBEAT_SECONDS, frame, untold_end
from service.waiting import dismissal


async def image_events(
    gateway: Gateway, record: JobRecord, base_url: str, seconds: float
) -> AsyncIterator[bytes]:
    """Frames of a job's images as they come.

    There is no image index in OpenAI's events: partial images are of the first image only, and
    each image has a completed event. A client that hangs up abandons the job.

    Args:
        gateway: The application's parts.
        record: The job as it stands.
        base_url: Base of image URLs.
        seconds: How long the client may wait.
    """
    deadline = time.monotonic() + seconds
    told = False
    try:
        # The headers come at once, whatever the queue holds.
        yield HEARTBEAT
        async for event in gateway.feeds.follow(
            record.id, heartbeat=min(HEARTBEAT_SECONDS, seconds)
        ):
            if event is None:
                yield HEARTBEAT
                event = await untold_end(gateway, record.id)
            if event is not None and event.type.is_terminal:
                told = True
                async for end in _end(gateway, record.id, base_url):
                    yield end
                return
            if event is not None and event.type is EventType.PREVIEW and event.data["image"] == 0:
                yield await _partial(record.spec, event)
            if time.monotonic() >= deadline or gateway.hub.is_refused:
                told = True
                yield _error(await not_ready(gateway, record))
                return
        told = True
        yield _error(dismissal(record.id))
    except redis.RedisError:
        yield _error(QueueUnavailable("The queue cannot be reached right now; try again soon."))
    finally:
        if not told:
            gateway.withdrawals.add(record.id, if_abandoned=True)


async def _partial(spec: JobSpec, event: JobEvent) -> bytes:
    preview = event.data
    data = _common(spec) | {
        "type": "image_generation.partial_image",
        "b64_json": await to_thread.run_sync(_enlarge, spec, preview["b64_json"]),
        "created_at": event.milliseconds // 1000,
        "partial_image_index": preview["preview"],
    }
    return frame("image_generation.partial_image", data)


async def _end(gateway: Gateway, job_id: str, base_url: str) -> AsyncIterator[bytes]:
    try:
        record = await gateway.queue.get(job_id)
        if record.result is None:
            yield _error(failure(record))
            return
        finished = record.model_copy(
            update={"spec": record.spec.model_copy(update={"response_format": "b64_json"})}
        )
        body = await images_body(gateway, finished, base_url)
    except KoalaError as error:
        yield _error(error)
        return
    for image in body.data:
        data = _common(record.spec) | {
            "type": "image_generation.completed",
            "b64_json": image.b64_json,
            "created_at": body.created,
            "usage": body.usage.model_dump(),
            "id": record.id,
            "seed": image.seed,
        }
        if record.spec.user is not None:
            data["safety_identifier"] = record.spec.user
        yield frame("image_generation.completed", data)


def _common(spec: JobSpec) -> dict[str, Any]:
    return {
        "size": f"{spec.width}x{spec.height}",
        "quality": spec.quality,
        "background": "opaque",
        "output_format": spec.output_format,
    }


def _error(error: KoalaError) -> bytes:
    return frame("error", error.body())


def _enlarge(spec: JobSpec, preview: str) -> str:
    """A preview at the size and in the format of the image that it is of."""
    with Image.open(BytesIO(base64.b64decode(preview))) as small:
        large = small.convert("RGB").resize((spec.width, spec.height), Image.Resampling.BICUBIC)
    buffer = BytesIO()
    large.save(buffer, spec.output_format)
    return base64.b64encode(buffer.getvalue()).decode()
