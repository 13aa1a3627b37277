"""Prometheus metrics of one worker."""

from collections.abc import Callable
from datetime import datetime
from typing import Final

import torch
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info
from rq.job import Job

from koala.metered_store import StoreMetrics
from koala.registry import new_registry
from worker.engine import Engine, Tick
from worker.engine_metrics import EngineCollector
from worker.flight import Flight
from worker.nvml_metrics import nvml_collector
from worker.vram_metrics import VramCollector

_STEP_BUCKETS: Final = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)
_JOB_BUCKETS: Final = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320, 640)
_ROW_BUCKETS: Final = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 128)
_FILL_BUCKETS: Final = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1)
# Fine enough for a heat map: four to a factor of ten.
_LATENCY_BUCKETS: Final = (
    0.1, 0.18, 0.32, 0.56, 1, 1.8, 3.2, 5.6, 10, 18, 32, 56, 100, 180, 320, 560, 1000, 1800,
)  # fmt: skip

# What a job can end in, by RQ's status and our code. With each series there from the start, the
# first end of its kind is an increase.
_ENDS: Final = (
    ("finished", ""),
    ("stopped", ""),
    ("failed", "content_policy_violation"),
    ("failed", "deadline_exceeded"),
    ("failed", "does_not_fit"),
    ("failed", "generation_failed"),
    ("failed", "image_store_error"),
    ("failed", "invalid_job"),
    ("failed", "lora_unusable"),
    ("failed", "timeout"),
    ("failed", "unsupported_job"),
    ("failed", "worker_died"),
)
_REQUEUE_REASONS: Final = ("drained", "never_claimed", "not_begun", "runs_alone", "worker_died")


class WorkerMetrics:
    """What a worker counts and measures.

    Args:
        registry: Where the metrics are registered; a registry of its own if none is given.
    """

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry or new_registry()
        self.store = StoreMetrics(self.registry)
        self.jobs_running = self._gauge("koala_jobs_running", "Jobs in flight.")
        self.samples_in_flight = self._gauge("koala_samples_in_flight", "Images being drawn.")
        self.samples_waiting = self._gauge(
            "koala_samples_waiting", "Images admitted that wait for rows of the batch."
        )
        self.images = Counter("koala_images", "Images stored.", ["format"], registry=self.registry)
        self.images_blocked = self._counter(
            "koala_images_blocked", "Images that the safety check withheld."
        )
        self.previews = Counter(
            "koala_previews",
            "Previews: shown, dropped to keep up, withheld as unsafe, or failed.",
            ["outcome"],
            registry=self.registry,
        )
        self.showing_seconds = self._counter(
            "koala_showing_seconds",
            "Processor time, beside the loop, that encoding and publishing previews took.",
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
        self.steps = self._counter("koala_steps", "Denoising steps done, of each image for itself.")
        self.prompt_tokens = self._counter(
            "koala_prompt_tokens", "Tokens of prompts and negative prompts."
        )
        self.prompt_tokens_truncated = self._counter(
            "koala_prompt_tokens_truncated", "Of these, tokens beyond what the model reads."
        )
        self.unet_step_seconds = self._histogram(
            "koala_unet_step_seconds", "One step of all rows through the U-Net.", _STEP_BUCKETS
        )
        self.decode_seconds = self._histogram(
            "koala_decode_seconds", "One image through the VAE's decoder.", _STEP_BUCKETS
        )
        self.loop_seconds = Counter(
            "koala_loop_seconds",
            "Time of the worker's loop with jobs in flight, by what it was spent on.",
            ["phase"],
            registry=self.registry,
        )
        self.batch_rows = self._histogram(
            "koala_batch_rows", "Rows of one U-Net call.", _ROW_BUCKETS
        )
        self.batch_fill_ratio = self._histogram(
            "koala_batch_fill_ratio",
            "Rows of one U-Net call as a share of the most that it may have, 0 to 1.",
            _FILL_BUCKETS,
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
            "koala_queue_wait_seconds",
            "From enqueueing to claim, or until the deadline passed in the queue.",
            _JOB_BUCKETS,
        )
        self.job_seconds = self._histogram(
            "koala_job_seconds", "From claim to end, of completed jobs.", _JOB_BUCKETS
        )
        self.job_latency_seconds = self._histogram(
            "koala_job_latency_seconds",
            "From enqueueing to end, of completed jobs.",
            _LATENCY_BUCKETS,
        )
        for end in _ENDS:
            self.jobs_finished.labels(*end)
        for reason in _REQUEUE_REASONS:
            self.jobs_requeued.labels(reason)
        for outcome in ("shown", "dropped", "withheld", "failed"):
            self.previews.labels(outcome)
        for output_format in ("png", "jpeg", "webp"):
            self.images.labels(output_format)

    def count_tick(self, tick: Tick, engine: Engine) -> None:
        """Count what the engine did in its last tick, and what it has in hand now."""
        if tick.rows:
            self.unet_step_seconds.observe(tick.unet_seconds)
            self.batch_rows.observe(tick.rows)
        if tick.size is not None:
            # A sample with guidance that is alone takes two rows also where one is the cap.
            self.batch_fill_ratio.observe(min(1.0, tick.rows / engine.capacity.cap(tick.size)))
        if tick.decoded:
            self.decode_seconds.observe(tick.decode_seconds)
        self.out_of_memory.inc(tick.out_of_memory)
        self.samples_put_back.inc(tick.put_back)
        self.vae_upcasts.inc(tick.upcasts)
        self.previews.labels("dropped").inc(tick.previews_dropped)
        self.previews.labels("failed").inc(tick.previews_failed)
        self.samples_in_flight.set(engine.in_flight)
        self.samples_waiting.set(engine.waiting)

    def count_wait(self, job: Job, until: datetime) -> None:
        """Count how long a job was in the queue, ``until`` a time by Redis."""
        waited = (until - job.created_at).total_seconds()
        self.queue_wait_seconds.observe(max(0.0, waited))

    def count_tokens(self, flight: Flight) -> None:
        """Count the tokens of a job's prompts."""
        self.prompt_tokens.inc(flight.text_tokens)
        self.prompt_tokens_truncated.inc(flight.truncated_tokens)

    def watch_engine(self, engine: Engine, weights: Callable[[], int]) -> None:
        """Add what the engine measured and the memory it takes, read when somebody scrapes.

        Args:
            engine: The engine.
            weights: Bytes that the model's weights take now.
        """
        self.registry.register(EngineCollector(engine, weights))

    def watch_device(self, device: torch.device) -> None:
        """Add what a CUDA device tells of itself, read when somebody scrapes."""
        if device.type != "cuda":
            return
        self.registry.register(VramCollector(device))
        uuid = str(torch.cuda.get_device_properties(device).uuid)
        nvml = nvml_collector(uuid)
        if nvml is not None:
            self.registry.register(nvml)

    def introduce(self, worker: str, model: str, device: str, dtype: str) -> None:
        """Say who is behind these metrics, as ``koala_worker_info``."""
        info = Info("koala_worker", "The worker and what it runs.", registry=self.registry)
        info.info({"worker": worker, "model": model, "device": device, "dtype": dtype})

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(name, text, registry=self.registry)

    def _counter(self, name: str, text: str) -> Counter:
        return Counter(name, text, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(name, text, buckets=buckets, registry=self.registry)
