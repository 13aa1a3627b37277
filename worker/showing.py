"""Shows previews: encodes and publishes them on a thread of its own."""

import base64
import time
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from io import BytesIO
from queue import SimpleQueue
from typing import Any, Final, TypeAlias

import structlog
from PIL import Image
from redis.exceptions import RedisError

from koala.events import EventType, JobEvent, publish
from worker.draining import drain
from worker.engine import COMPLAINT_SECONDS, Preview
from worker.fencing import FencedWorker
from worker.flight import Flight
from worker.link import is_outage
from worker.metrics import WorkerMetrics
from worker.safety import SafetyChecker

log = structlog.get_logger()

# A worker that cannot show them as fast as it draws them leaves some out.
_MOST_PENDING: Final = 32
# JPEG takes a tenth of WebP's time; colours at full resolution, for these are small.
_FORMAT: Final = "JPEG"
_MEDIA_TYPE: Final = "image/jpeg"
_OPTIONS: Final[dict[str, Any]] = {"quality": 85, "subsampling": 0}
# All previews of a job together, as files: each gets an equal part, and no less than a thumbnail.
_MOST_BYTES_PER_JOB: Final = 1024 * 1024
_LEAST_SIDE: Final = 64

# A job, and what one of its images looks like.
_Shown: TypeAlias = tuple[Flight, Preview]


class Showing:
    """Publishes previews as events of their jobs.

    Args:
        worker: In whose name.
        metrics: Where previews are counted.
        safety: Says which previews are withheld; ``None``: none is.
    """

    def __init__(
        self, worker: FencedWorker, metrics: WorkerMetrics, safety: SafetyChecker | None = None
    ) -> None:
        self._safety = safety
        self._worker = worker
        self._metrics = metrics
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="showing")
        self._waiting: SimpleQueue[_Shown] = SimpleQueue()
        self._spent: SimpleQueue[float] = SimpleQueue()
        self._next_complaint = 0.0

    def show(self, previews: Iterable[_Shown]) -> None:
        """Publish previews, each with its job; drop what lags behind."""
        for shown in previews:
            if self._waiting.qsize() >= _MOST_PENDING:
                self._metrics.previews.labels("dropped").inc()
            else:
                self._waiting.put(shown)
        self._pool.submit(self._publish_all).add_done_callback(_complain)

    def spent(self) -> float:
        """Seconds of a processor that showing took since this was last asked.

        The safety check does not count: who wants it pays for it.
        """
        return sum(drain(self._spent))

    def close(self) -> None:
        """Drop what is not begun."""
        self._pool.shutdown(cancel_futures=True)

    def _publish_all(self) -> None:
        seen = [shown for shown in drain(self._waiting) if self._checked(*shown)]
        if not seen:
            return
        began = time.thread_time()
        try:
            events = [
                (flight, event)
                for flight, preview in seen
                if (event := self._encoded(flight, preview)) is not None
            ]
            self._publish(events)
        finally:
            seconds = time.thread_time() - began
            self._spent.put(seconds)
            self._metrics.showing_seconds.inc(seconds)

    def _publish(self, events: list[tuple[Flight, JobEvent]]) -> None:
        worker = self._worker
        try:
            with worker.connection.pipeline(transaction=False) as pipeline:
                for flight, event in events:
                    publish(pipeline, worker.keys, flight.id, event, worker.event_ttl)
                    # The reaper forgets them soon after the job's end.
                    pipeline.zadd(worker.keys.previews, {flight.id: 0}, nx=True)
                pipeline.execute()
        except RedisError as error:
            if not is_outage(error):
                self._complain(error, len(events))
                return
            # The next ones show more.
            log.debug("previews were not shown", count=len(events), error=str(error))
            self._metrics.previews.labels("dropped").inc(len(events))
        else:
            self._metrics.previews.labels("shown").inc(len(events))

    # One preview that goes wrong takes no other one with it.

    def _checked(self, flight: Flight, preview: Preview) -> bool:
        try:
            return self._may_be_seen(flight, preview)
        except Exception as error:
            self._complain(error)
            return False

    def _encoded(self, flight: Flight, preview: Preview) -> JobEvent | None:
        try:
            return _event(flight, preview)
        except Exception as error:
            self._complain(error)
            return None

    def _complain(self, error: Exception, count: int = 1) -> None:
        self._metrics.previews.labels("failed").inc(count)
        now = time.monotonic()
        if now >= self._next_complaint:
            self._next_complaint = now + COMPLAINT_SECONDS
            log.warning(
                "a preview cannot be shown; the image itself goes on",
                exc_info=error,
                quiet_seconds=COMPLAINT_SECONDS,
            )

    def _may_be_seen(self, flight: Flight, preview: Preview) -> bool:
        if flight.outcome is not None:
            return False
        safety = self._safety
        if safety is not None and safety.refuses(preview.image, flight.spec.moderation):
            self._metrics.previews.labels("withheld").inc()
            return False
        return True


def _event(flight: Flight, preview: Preview) -> JobEvent:
    spec = flight.spec
    image, data = _encode(preview.image, _MOST_BYTES_PER_JOB // (spec.n * max(1, spec.previews)))
    fields = {
        "image": preview.key.index,
        "preview": flight.spec.preview_steps.index(preview.step),
        "step": preview.step,
        "steps": flight.spec.num_inference_steps,
        "image_steps": flight.steps,
        "media_type": _MEDIA_TYPE,
        "width": image.width,
        "height": image.height,
        "b64_json": base64.b64encode(data).decode(),
    }
    return JobEvent(EventType.PREVIEW, fields)


def _encode(image: Image.Image, most_bytes: int) -> tuple[Image.Image, bytes]:
    """A preview as a file, made smaller until it has at most ``most_bytes``."""
    while True:
        buffer = BytesIO()
        image.save(buffer, _FORMAT, **_OPTIONS)
        if buffer.tell() <= most_bytes or max(image.size) <= _LEAST_SIDE:
            return image, buffer.getvalue()
        image = image.reduce(2)


def _complain(done: Future[None]) -> None:
    if not done.cancelled() and (error := done.exception()) is not None:
        log.error("previews were not shown", exc_info=error)
