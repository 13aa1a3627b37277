"""What is told of a job at its end: metrics, one log line, and the spans of a trace."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import structlog
from opentelemetry.trace import (
    NoOpTracerProvider,
    SpanKind,
    Status,
    StatusCode,
    TracerProvider,
    set_span_in_context,
)
from rq.job import JobStatus

from koala.clock import RedisClock
from worker.flight import Flight, Outcome
from worker.metrics import WorkerMetrics

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Stage:
    """A part of a job's course, between two moments of Redis' time in seconds."""

    name: str
    began: float
    ended: float
    attributes: dict[str, Any]


class Report:
    """Tells of jobs as they end.

    Args:
        worker: The worker's name.
        metrics: Where ends are counted.
        clock: Redis' time, which jobs are submitted in.
        tracer_provider: Makes the spans; ``None`` where nobody wants any.
    """

    def __init__(
        self,
        worker: str,
        metrics: WorkerMetrics,
        clock: RedisClock,
        tracer_provider: TracerProvider | None,
    ) -> None:
        self._clock = clock
        self._worker = worker
        self._metrics = metrics
        self._traces = tracer_provider is not None
        self._tracer = (tracer_provider or NoOpTracerProvider()).get_tracer("koala.worker")

    def count(self, outcome: Outcome) -> None:
        """Count an end."""
        self._metrics.jobs_finished.labels(outcome.status.value, outcome.code).inc()

    def ended(self, flight: Flight, outcome: Outcome) -> None:
        """Tell of a flight whose end is written down."""
        self.count(outcome)
        now = self._clock.time()
        created = flight.job.created_at.timestamp()
        stages = list(_stages(flight, created, now))
        if outcome.status == JobStatus.FINISHED:
            self._metrics.job_seconds.observe(time.monotonic() - flight.admitted_at)
            self._metrics.job_latency_seconds.observe(max(0.0, now - created))
        spec = flight.spec
        log.info(
            "a job ended",
            job_id=flight.id,
            **flight.trail.ids,
            status=outcome.status.value,
            code=outcome.code or None,
            images=spec.n,
            size=f"{spec.width}x{spec.height}",
            steps=spec.num_inference_steps,
            attempts=flight.job.attempts,
            **{f"{stage.name}_seconds": round(stage.ended - stage.began, 4) for stage in stages},
            total_seconds=round(now - created, 4),
        )
        if self._traces:
            self._trace(flight, outcome, Stage("job", created, now, {}), stages)

    def _trace(self, flight: Flight, outcome: Outcome, job: Stage, stages: list[Stage]) -> None:
        spec = flight.spec
        whole = self._tracer.start_span(
            "job",
            flight.trail.context,
            SpanKind.CONSUMER,
            {
                "koala.job_id": flight.id,
                "koala.request_id": flight.trail.request_id,
                "koala.worker": self._worker,
                "koala.model": spec.model,
                "koala.images": spec.n,
                "koala.width": spec.width,
                "koala.height": spec.height,
                "koala.attempts": flight.job.attempts,
                "koala.status": outcome.status.value,
            },
            start_time=_nanoseconds(job.began),
        )
        inside = set_span_in_context(whole, flight.trail.context)
        for stage in stages:
            span = self._tracer.start_span(
                stage.name,
                inside,
                attributes=stage.attributes,
                start_time=_nanoseconds(stage.began),
            )
            span.end(_nanoseconds(stage.ended))
        if outcome.code:
            whole.set_attribute("error.type", outcome.code)
            whole.set_status(Status(StatusCode.ERROR, outcome.reason))
        whole.end(_nanoseconds(job.ended))


def _stages(flight: Flight, created: float, now: float) -> Iterator[Stage]:
    """The parts of a flight's course as far as it came, one behind the other."""
    offset = now - time.monotonic()
    spec = flight.spec
    claimed = flight.admitted_at + offset
    # What two machines take for Redis' time may differ a little.
    yield Stage("queue", min(created, claimed), claimed, {})
    steps = {"koala.steps": spec.num_inference_steps, "koala.steps_done": sum(flight.steps)}
    marks: list[tuple[str, float | None, dict[str, Any]]] = [
        ("admission", flight.began_at, {"koala.text_tokens": flight.text_tokens}),
        ("denoise", flight.denoised_at, steps),
        ("decode", flight.decoded_at, {}),
        ("store", now - offset, {}),
    ]
    began = claimed
    for name, mark, attributes in marks:
        # The stage that the job ended in lasts until its end.
        ended = now if mark is None else mark + offset
        yield Stage(name, began, max(began, ended), attributes)
        if mark is None:
            return
        began = max(began, ended)


def _nanoseconds(seconds: float) -> int:
    return round(seconds * 1e9)
