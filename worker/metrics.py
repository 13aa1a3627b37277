"""Prometheus metrics of one worker."""

from collections.abc import Callable
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from worker.engine import Engine, Tick
from worker.engine_metrics import EngineCollector

_STEP_BUCKETS: Final = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)
_JOB_BUCKETS: Final = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320, 640)
_ROW_BUCKETS: Final = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 128)


class WorkerMetrics:
    """What a worker counts and measures.

    Args:
        registry: Where the metrics are registered; a registry of its own if none is given.
    """

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry or CollectorRegistry()
        self.jobs_running = self._gauge("koala_jobs_running", "Jobs in flight.")
        self.samples_in_flight = self._gauge("koala_samples_in_flight", "Images being drawn.")
        self.samples_waiting = self._gauge(
            "koala_samples_waiting", "Images admitted that wait for rows of the batch."
        )
        self.images = Counter("koala_images", "Images stored.", ["format"], registry=self.registry)
        self.previews = Counter(
            "koala_previews",
            "Previews, by whether they were shown or dropped to keep up.",
            ["outcome"],
            registry=self.registry,
        )
        self.jobs_finished = Counter(
            "koala_jobs_finished",
            "Jobs ended, by status and error code.",
            ["status", "code"],
            registry=self.registry,
        )
        self.jobs_requeued = Counter(
            "koala_jobs_requeued",
            "Jobs put back into the queue by this worker, by reason.",
            ["reason"],
            registry=self.registry,
        )
        self.leases_lost = self._counter(
            "koala_leases_lost", "Jobs dropped because somebody else has them by now."
        )
        self.unet_step_seconds = self._histogram(
            "koala_unet_step_seconds", "One step of all rows through the U-Net.", _STEP_BUCKETS
        )
        self.decode_seconds = self._histogram(
            "koala_decode_seconds", "One image through the VAE's decoder.", _STEP_BUCKETS
        )
        self.batch_rows = self._histogram(
            "koala_batch_rows", "Rows of one U-Net call.", _ROW_BUCKETS
        )
        self.out_of_memory = self._counter(
            "koala_out_of_memory", "Calls that ran out of memory; the batch goes on, smaller."
        )
        self.samples_put_back = self._counter(
            "koala_samples_put_back", "Images that had to wait again because memory ran out."
        )
        self.vae_upcasts = self._counter(
            "koala_vae_upcasts", "Images decoded again in fp32 because they overflowed in fp16."
        )
        self.queue_wait_seconds = self._histogram(
            "koala_queue_wait_seconds", "From enqueueing to claim.", _JOB_BUCKETS
        )
        self.job_seconds = self._histogram(
            "koala_job_seconds", "From claim to end, of completed jobs.", _JOB_BUCKETS
        )

    def count_troubles(self, tick: Tick) -> None:
        """Count what went wrong in a tick of the engine and was got over."""
        self.out_of_memory.inc(tick.out_of_memory)
        self.samples_put_back.inc(tick.put_back)
        self.vae_upcasts.inc(tick.upcasts)

    def watch_engine(self, engine: Engine, weights: int) -> None:
        """Add what the engine measured and the memory it takes, read when somebody scrapes.

        Args:
            engine: The engine.
            weights: Bytes of the model's weights.
        """
        self.registry.register(EngineCollector(engine, weights))

    def watch_vram(self, allocated: Callable[[], float], reserved: Callable[[], float]) -> None:
        """Add gauges of the accelerator's memory, read when somebody scrapes."""
        gauge = self._gauge("koala_vram_allocated_bytes", "Memory that live tensors take.")
        gauge.set_function(allocated)
        gauge = self._gauge("koala_vram_reserved_bytes", "Memory that torch holds.")
        gauge.set_function(reserved)

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(name, text, registry=self.registry)

    def _counter(self, name: str, text: str) -> Counter:
        return Counter(name, text, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(name, text, buckets=buckets, registry=self.registry)
