"""A gateway on a real socket, and a stand-in for the worker that draws nothing."""

import base64
import io
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import httpx
import redis
import uvicorn
from opentelemetry.trace import TracerProvider
from PIL import Image
from rq import Queue
from rq.job import Job, JobStatus
from rq.results import Result
from rq.serializers import JSONSerializer

from koala.connections import connect
from koala.events import EventType, JobEvent, publish
from koala.keys import Keys
from koala.scripts import WEBHOOK
from koala.settings import Settings
from koala.spec import ImageRef, JobResult, JobSpec, Usage
from koala.store import ImageStore
from koala.workers import WorkerAd, advertise
from service.app import create_app
from service.gateway import Gateway
from service.run import server_config
from service.webhooks.pace import Pace


@dataclass(frozen=True)
class Served:
    """A gateway that runs in a thread of this process."""

    base_url: str
    settings: Settings
    gateway: Gateway
    http: httpx.Client

    def metric(self, name: str) -> float:
        """The value of a metric right now, as a scrape shows it."""
        for line in self.http.get("/metrics").text.splitlines():
            if line.startswith(name + " "):
                return float(line.rsplit(" ", 1)[1])
        raise AssertionError(f"no metric {name}")


@contextmanager
def serving(
    settings: Settings,
    webhook_pace: Pace | None = None,
    tracer_provider: TracerProvider | None = None,
    loop: str = "auto",
) -> Iterator[Served]:
    """Run a gateway until the context ends, on the event loop that it runs on in earnest."""
    app = create_app(settings, webhook_pace, tracer_provider)
    config = server_config(app, settings)
    config.host, config.port, config.timeout_graceful_shutdown = settings.host, 0, 1
    config.loop = loop
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_until(lambda: server.started)
        port = server.servers[0].sockets[0].getsockname()[1]
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        base_url = f"http://{host}:{port}"
        with httpx.Client(base_url=base_url, timeout=120) as http:
            yield Served(base_url, settings, app.state.gateway, http)
    finally:
        server.should_exit = True
        thread.join(120)
        # It would go on with other tests' jobs.
        assert not thread.is_alive(), "a gateway that does not end"


def wait_until(condition: Callable[[], bool], seconds: float = 120.0) -> None:
    """Return as soon as ``condition`` holds; fail when it does not come to."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came to be"
        time.sleep(0.01)


class FakeWorker:
    """Ends jobs at a word, through RQ's own records and this project's events."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.redis: redis.Redis = connect(settings)
        self.keys = Keys(settings.queue)
        self.queue = Queue(settings.queue, connection=self.redis, serializer=JSONSerializer)
        self.store = ImageStore(settings.resolved_image_store)

    def waiting(self) -> list[str]:
        """Ids of the jobs in the queue."""
        return self.queue.job_ids

    def take(self, seconds: float = 120.0) -> str:
        """Start the next job; its id."""
        wait_until(lambda: bool(self.waiting()), seconds)
        job_id = self.waiting()[0]
        job = self._job(job_id)
        job.started_at = datetime.now(UTC)
        job.worker_name = "fake"
        job.save()
        job.set_status(JobStatus.STARTED)
        self.queue.remove(job_id)
        self.redis.zadd(self.keys.leases, {job_id: 2**52 - time.time()})
        return job_id

    def step(self, job_id: str, *image_steps: int) -> None:
        """Say how far each image of a job is."""
        assert len(image_steps) == self.spec(job_id).n
        steps = self.spec(job_id).total_steps
        data = {"step": sum(image_steps), "steps": steps, "image_steps": image_steps}
        self.tell(job_id, JobEvent(EventType.STEP, data))

    def preview(self, job_id: str, preview: int, image: int = 0) -> None:
        """Show what an image looks like on its way; the others have come as far."""
        buffer = io.BytesIO()
        Image.new("RGB", (8, 8), "grey").save(buffer, "JPEG")
        data = {
            "image": image,
            "preview": preview,
            "step": self.spec(job_id).preview_steps[preview],
            "steps": self.spec(job_id).num_inference_steps,
            "image_steps": [self.spec(job_id).preview_steps[preview]] * self.spec(job_id).n,
            "media_type": "image/jpeg",
            "width": 8,
            "height": 8,
            "b64_json": base64.b64encode(buffer.getvalue()).decode(),
        }
        self.tell(job_id, JobEvent(EventType.PREVIEW, data))

    def finish(self, job_id: str, *, silently: bool = False) -> None:
        """Complete a job with images of one colour; ``silently`` wakes nobody."""
        spec = self.spec(job_id)
        images = []
        for i in range(spec.n):
            data = picture(spec.output_format, shade=i)
            self.store.put(spec.image_name(i), data)
            name = spec.image_name(i)
            images.append(ImageRef(name=name, seed=spec.image_seed(i), size_bytes=len(data)))
        result = JobResult(
            images=images,
            usage=Usage(text_tokens=2),
            denoise_seconds=0.1,
            decode_and_store_seconds=0.02,
        )
        value = result.model_dump(mode="json")
        # A job that is seen to be over has its result, as where RQ writes both at once.
        Result.create(self._job(job_id), Result.Type.SUCCESSFUL, ttl=600, return_value=value)
        job = self._end(job_id, JobStatus.FINISHED)
        self.queue.finished_job_registry.add(job, 600)
        if not silently:
            self.tell(job_id, JobEvent(EventType.COMPLETED, {}))

    def fail(
        self, job_id: str, code: str = "out_of_memory", message: str = "It does not fit."
    ) -> None:
        """Fail a job."""
        self._end(job_id, JobStatus.FAILED)
        error = {"message": message, "code": code}
        self.tell(job_id, JobEvent(EventType.FAILED, {"error": error}))

    def cancel(self, job_id: str) -> None:
        """Cancel a job."""
        self._end(job_id, JobStatus.CANCELED)
        self.tell(job_id, JobEvent(EventType.CANCELLED, {}))

    def advertise(self, **changes: object) -> None:
        """Say that a worker lives for a minute."""
        now = datetime.now(UTC)
        fields = {
            "name": "fake",
            "model": "koala-demo",
            "device": "cpu",
            "dtype": "float32",
            "version": "0",
            "started_at": now,
            "expires_at": now + timedelta(minutes=1),
            "jobs_in_flight": 0,
            "rows": 0,
            "max_rows": 8,
            "images_total": 0,
        }
        advertise(self.redis, self.keys, WorkerAd.model_validate(fields | changes))

    @contextmanager
    def working(self) -> Iterator[None]:
        """Complete every job that comes, for as long as the context lasts."""
        stop = threading.Event()

        def work() -> None:
            while not stop.wait(0.005):
                for _ in self.waiting():
                    self.finish(self.take())

        thread = threading.Thread(target=work)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join(120)

    def spec(self, job_id: str) -> JobSpec:
        """What a job asks for."""
        return JobSpec.model_validate(self._job(job_id).kwargs["spec"])

    def _job(self, job_id: str) -> Job:
        return Job.fetch(job_id, connection=self.redis, serializer=JSONSerializer)

    def _end(self, job_id: str, status: JobStatus) -> Job:
        job = self._job(job_id)
        job.ended_at = datetime.now(UTC)
        job.save()
        job.set_status(status)
        job.cleanup(600)
        self.redis.zrem(self.keys.leases, job_id)
        if self.redis.hexists(job.key, WEBHOOK):
            self.redis.zadd(self.keys.outbox, {job_id: time.time()})
        return job

    def tell(self, job_id: str, event: JobEvent) -> None:
        """Publish an event of a job."""
        with self.redis.pipeline() as pipeline:
            publish(pipeline, self.keys, job_id, event, ttl=600)
            pipeline.execute()


def picture(output_format: str, shade: int = 0) -> bytes:
    """A small image file."""
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (shade, 100, 100)).save(buffer, output_format)
    return buffer.getvalue()
