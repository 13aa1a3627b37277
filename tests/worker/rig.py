"""A worker on a real queue, with an engine whose steps a test can watch and stop."""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, TypeVar

import redis
from PIL import Image
from rq.job import Job
from rq.serializers import JSONSerializer

from koala.cancelling import Cancelled
from koala.clock import RedisClock
from koala.connections import connect_async
from koala.events import JobEvent, decode
from koala.keys import Keys
from koala.queue import JobQueue, Submitted
from koala.settings import Settings
from koala.spec import JobRecord, JobSpec
from koala.store import ImageStore
from tests.support import spec
from worker.admission import ServedModel
from worker.engine import Capacity, DoesNotFit, Failed, Finished, Progress, SampleRequest, Tick
from worker.gallery import Gallery
from worker.idle import IdleUnload
from worker.images import ImageMetadata
from worker.inflight import InflightWorker
from worker.metrics import WorkerMetrics

T = TypeVar("T")


TROUBLES = {
    "broken": RuntimeError("the engine gave up"),
    "unspeakable": RuntimeError("\ud800" + "x" * 10_000),
    "huge": DoesNotFit("64x64 px", 9 * 2**30, 7 * 2**30),
}


class FakeEngine:
    """Draws grey squares, all samples together, one step at a time.

    ``before_step`` is called with the number of the step, from 1. A prompt "broken" fails at its
    second step, and so does "huge", for want of memory.
    """

    def __init__(self, max_rows: int = 8) -> None:
        self.max_rows = max_rows
        self.before_step: Callable[[int], None] = lambda number: None
        self.steps_taken = 0
        self.company: list[set[str]] = []
        self.seeds: list[int] = []
        self._samples: dict[Any, tuple[SampleRequest, int]] = {}
        self.is_loaded = True
        self.preview_seconds = 0.0

    @property
    def is_idle(self) -> bool:
        return not self._samples

    @property
    def in_flight(self) -> int:
        return len(self._samples)

    @property
    def waiting(self) -> int:
        return 0

    @property
    def has_room(self) -> bool:
        return self.rows < self.max_rows

    @property
    def capacity(self) -> Capacity:
        return Capacity(most=self.max_rows)

    @property
    def rows(self) -> int:
        return sum(2 if r.guidance_scale > 1 else 1 for r, _ in self._samples.values())

    @property
    def last_tick(self) -> Tick:
        return Tick(rows=self.rows, samples=self.in_flight)

    def unload(self) -> None:
        self.is_loaded = False

    def reload(self) -> None:
        self.is_loaded = True

    def charge_previews(self, seconds: float) -> None:
        self.preview_seconds += seconds

    def add(self, request: SampleRequest) -> None:
        if request.width % 8:
            raise ValueError("too odd")
        self._samples[request.key] = (request, 0)
        self.seeds.append(request.seed)

    def remove(self, key: Any) -> None:
        del self._samples[key]

    def step(self) -> list[Any]:
        self.steps_taken += 1
        self.company.append({key.job_id for key in self._samples})
        self.before_step(self.steps_taken)
        events: list[Any] = []
        for key, (request, done) in list(self._samples.items()):
            if request.prompt in TROUBLES and done == 1:
                events.append(Failed(key, TROUBLES[request.prompt]))
                del self._samples[key]
                continue
            self._samples[key] = (request, done + 1)
            events.append(Progress(key, done + 1, request.num_inference_steps))
            if done + 1 == request.num_inference_steps:
                picture = Image.new("RGB", (request.width, request.height), "grey")
                events.append(Finished(key, picture))
                del self._samples[key]
        return events


MODEL = ServedModel(
    id="koala-demo",
    names=frozenset({"koala-demo"}),
    count_tokens=lambda text: len(text.split()),
    max_prompt_tokens=75,
)


def describe(flight: Any, index: int, image: Image.Image) -> ImageMetadata:
    """Metadata for a picture of the fake engine."""
    return ImageMetadata(
        prompt=flight.spec.prompt,
        negative_prompt=flight.spec.negative_prompt,
        seed=flight.spec.image_seed(index),
        steps=flight.spec.num_inference_steps,
        guidance_scale=flight.spec.guidance_scale,
        scheduler="none",
        model="koala-demo",
        software="koala-serve tests",
        width=image.width,
        height=image.height,
        created=datetime.now(UTC),
    )


@dataclass
class Rig:
    """One queue, and workers on it."""

    settings: Settings
    redis: redis.Redis
    engine: FakeEngine = field(default_factory=FakeEngine)
    metrics: WorkerMetrics = field(default_factory=WorkerMetrics)
    workers: int = 0

    @property
    def keys(self) -> Keys:
        """The queue's keys."""
        return Keys(self.settings.queue)

    def worker(self, engine: FakeEngine | None = None, **kwargs: Any) -> InflightWorker:
        """A new worker; ``kwargs`` replace what it is made of."""
        self.workers += 1
        connection = redis.Redis.from_url(self.settings.resolved_redis_url)
        clock = RedisClock()
        clock.ask(connection)
        parts: dict[str, Any] = {
            "settings": self.settings,
            "connection": connection,
            "clock": clock,
            "engine": engine or self.engine,
            "gallery": Gallery(ImageStore(self.settings.resolved_image_store), describe),
            "model": MODEL,
            "account": {"device": "cpu", "dtype": "float32"},
            "metrics": self.metrics,
            "idle": IdleUnload(self.engine, None),
            "name": f"worker-{self.workers}",
        }
        return InflightWorker(**(parts | kwargs))

    def work(self, **kwargs: Any) -> InflightWorker:
        """Let a new worker run until the queue is empty."""
        worker = self.worker(**kwargs)
        worker.work(burst=True)
        return worker

    def submit(self, **changes: Any) -> str:
        """Admit a job as the gateway does; its id."""
        return self.submit_spec(spec(**changes))

    def submit_spec(self, job: JobSpec) -> str:
        """Admit a job as the gateway does; its id."""
        return self.submit_with(job).record.id

    def submit_with(self, job: JobSpec, **how: Any) -> Submitted:
        """Admit a job as the gateway does, with whatever else it says of it."""
        return self._on_queue(lambda queue: queue.submit(job, **how))

    def cancel(self, job_id: str) -> Cancelled:
        """Cancel a job as the gateway does."""
        return self._on_queue(lambda queue: queue.cancel(job_id))

    def record(self, job_id: str) -> JobRecord:
        """A job as the gateway sees it."""
        return self._on_queue(lambda queue: queue.get(job_id))

    def job(self, job_id: str) -> Job:
        """A job as RQ sees it."""
        return Job.fetch(job_id, self.redis, JSONSerializer)

    def events(self, job_id: str) -> list[JobEvent]:
        """All that was told of a job."""
        return [decode(*entry) for entry in self.redis.xrange(self.keys.events(job_id))]

    def told(self, job_id: str) -> list[str]:
        """The types of all events of a job, steps left out."""
        return [str(event.type) for event in self.events(job_id) if event.type != "step"]

    def leftovers(self) -> list[str]:
        """Keys that tell of work going on: there are none when everything has ended."""
        patterns = (
            self.keys.pending,
            self.keys.intermediate,
            self.keys.started,
            self.keys.leases,
            self.keys.unclaimed,
            "rq:execution*",
            "rq:worker:*:executions",
        )
        return [key.decode() for pattern in patterns for key in self.redis.keys(pattern)]

    def expire_lease(self, job_id: str) -> None:
        """Let the lease of a job, which has one, be over."""
        assert self.redis.zscore(self.keys.leases, job_id) is not None
        self.redis.zadd(self.keys.leases, {job_id: 1}, xx=True)

    def _on_queue(self, action: Callable[[JobQueue], Coroutine[Any, Any, T]]) -> T:
        async def act() -> T:
            connection = connect_async(self.settings)
            try:
                return await action(JobQueue(connection, self.settings))
            finally:
                await connection.aclose()

        return asyncio.run(act())
