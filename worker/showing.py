"""Shows previews: encodes and publishes them on a thread of its own."""

import base64
from concurrent.futures import Future, ThreadPoolExecutor
from io import BytesIO
from typing import Final

import structlog
from PIL import Image
from redis.exceptions import RedisError

from koala.events import EventType, JobEvent, publish
from worker.fencing import FencedWorker
from worker.flight import Flight
from worker.link import is_outage
from worker.metrics import WorkerMetrics
from worker.safety import SafetyChecker

log = structlog.get_logger()

# A worker that cannot show them as fast as it draws them leaves some out.
_MOST_PENDING: Final = 32
_QUALITY: Final = 85


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
        self._pending: list[Future[None]] = []

    def show(self, flight: Flight, index: int, step: int, image: Image.Image) -> None:
        """Publish a preview of image ``index`` after ``step`` steps; drop it if that lags."""
        self._pending = [future for future in self._pending if not future.done()]
        if len(self._pending) >= _MOST_PENDING:
            self._metrics.previews.labels("dropped").inc()
            return
        self._pending.append(self._pool.submit(self._publish, flight, index, step, image))

    def close(self) -> None:
        """Drop what is not begun."""
        self._pool.shutdown(cancel_futures=True)

    def _publish(self, flight: Flight, index: int, step: int, image: Image.Image) -> None:
        if flight.outcome is not None:
            return
        if self._safety is not None and self._safety.refuses(image, flight.spec.moderation):
            self._metrics.previews.labels("withheld").inc()
            return
        buffer = BytesIO()
        image.save(buffer, "WEBP", quality=_QUALITY)
        data = {
            "image": index,
            "preview": flight.spec.preview_steps.index(step),
            "step": step,
            "steps": flight.spec.num_inference_steps,
            "image_steps": flight.steps,
            "media_type": "image/webp",
            "width": image.width,
            "height": image.height,
            "b64_json": base64.b64encode(buffer.getvalue()).decode(),
        }
        worker = self._worker
        event = JobEvent(EventType.PREVIEW, data)
        try:
            with worker.connection.pipeline(transaction=False) as pipeline:
                publish(pipeline, worker.keys, flight.id, event, worker.event_ttl)
                pipeline.execute()
        except RedisError as error:
            if not is_outage(error):
                raise
            # The next one shows more.
            log.debug("a preview was not shown", job_id=flight.id, error=str(error))
            self._metrics.previews.labels("dropped").inc()
        else:
            self._metrics.previews.labels("shown").inc()
