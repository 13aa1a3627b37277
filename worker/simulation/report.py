"""What a simulation comes to."""

import math
from dataclasses import dataclass
from typing import Final

from worker.simulation.simulate import Trace
from worker.simulation.workload import Job

# The part of the requests that only fills the service and is not counted.
_WARM_UP: Final = 0.1


@dataclass(frozen=True, slots=True)
class Summary:
    """The figures of one simulation, all times in seconds.

    Args:
        images_per_minute: Images drawn while requests still came.
        mean_latency: From arrival to the last image, mean.
        p50_latency: The median.
        p95_latency: The 95th percentile.
        mean_wait: From arrival to the first denoising step, mean.
        p95_wait: The 95th percentile.
        mean_queue_wait: From arrival to the claim by a worker, mean.
        rows_per_step: Mean rows of a U-Net call.
        busy_share: Part of the time in which a GPU had something to do.
    """

    images_per_minute: float
    mean_latency: float
    p50_latency: float
    p95_latency: float
    mean_wait: float
    p95_wait: float
    mean_queue_wait: float
    rows_per_step: float
    busy_share: float


def summarize(trace: Trace) -> Summary:
    """The figures of a trace; its first tenth of requests is not counted.

    Raises:
        ValueError: There was no request.
    """
    if not trace.jobs:
        raise ValueError("there was no request")
    counted = trace.jobs[int(len(trace.jobs) * _WARM_UP) :]
    began, ended = counted[0].arrived, counted[-1].arrived
    if began == ended:
        ended = max(_known(job.ended) for job in trace.jobs)
    latencies = sorted(_known(job.ended) - job.arrived for job in counted)
    waits = sorted(_known(job.begun) - job.arrived for job in counted)
    queue_waits = [_known(job.claimed) - job.arrived for job in counted]
    ticks = [tick for tick in trace.ticks if tick.ended > began and tick.began < ended]
    calls = [tick.rows for tick in ticks if tick.rows]
    busy = sum(min(tick.ended, ended) - max(tick.began, began) for tick in ticks)
    return Summary(
        images_per_minute=60 * _rate(trace.jobs, began, ended),
        mean_latency=_mean(latencies),
        p50_latency=_percentile(latencies, 0.5),
        p95_latency=_percentile(latencies, 0.95),
        mean_wait=_mean(waits),
        p95_wait=_percentile(waits, 0.95),
        mean_queue_wait=_mean(queue_waits),
        rows_per_step=_mean([float(rows) for rows in calls]),
        busy_share=busy / (ended - began) / trace.gpus,
    )


def _rate(jobs: list[Job], began: float, ended: float) -> float:
    """Images per second between the first and the last answer of a stretch of time.

    From answer to answer, so that it does not matter where within a batch the stretch begins.
    """
    answers = sorted(
        (_known(job.ended), job.shape.n) for job in jobs if began <= _known(job.ended) <= ended
    )
    first, last = (answers[0][0], answers[-1][0]) if answers else (began, began)
    if last == first:
        return sum(job.shape.n for job in jobs) / (max(_known(job.ended) for job in jobs) - began)
    return sum(n for moment, n in answers if moment > first) / (last - first)


def _known(moment: float | None) -> float:
    if moment is None:
        raise ValueError("the trace is not complete")
    return moment


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _percentile(values: list[float], share: float) -> float:
    """The smallest of the sorted values that ``share`` of them do not exceed."""
    return values[max(0, math.ceil(share * len(values)) - 1)]
