"""From the answers of a run to its record."""

from collections import Counter
from collections.abc import Sequence

from bench.contenders import Contender
from bench.figures import Answer, percentile, rate_within
from bench.load import OpenRun, Window
from bench.results import Run
from bench.workloads import Workload


def closed_run(
    contender: Contender, workload: Workload, number: int, window: Window, cpu: float
) -> Run:
    """The record of one level of a closed loop."""
    rate = rate_within(window.answers, window.start, window.end)
    inside = window.inside
    latencies = _latencies(inside)
    return Run(
        contender=contender,
        workload=workload,
        load="closed",
        clients=window.clients,
        round=number,
        seconds=rate.seconds,
        images=rate.images,
        images_per_second=rate.images_per_second,
        unet_rows_per_second=rate.unet_rows_per_second,
        p50=_percentile(latencies, 50),
        p95=_percentile(latencies, 95),
        queue_wait_p50=_percentile(_queue_waits(inside), 50),
        queue_wait_p95=_percentile(_queue_waits(inside), 95),
        errors=_errors(inside),
        latencies=latencies,
        generator_cpu=cpu,
    )


def poisson_run(
    contender: Contender, workload: Workload, number: int, rate: float, run: OpenRun, cpu: float
) -> Run:
    """The record of Poisson arrivals of ``rate`` per second.

    Requests unfinished at the end enter the percentiles with the time they had waited by then.
    Their true latencies are longer, so the percentiles flatter an overloaded server.
    """
    answers = run.answers
    latencies = _latencies(answers)
    unfinished = [round(run.end - answer.due, 4) for answer in answers if answer.ended is None]
    images = [answer for answer in answers if answer.is_image]
    ends = [answer.ended for answer in answers if answer.ended is not None]
    seconds = max(ends, default=run.end) - run.start
    return Run(
        contender=contender,
        workload=workload,
        load="poisson",
        rate=rate,
        round=number,
        seconds=seconds,
        images=len(images),
        images_per_second=len(images) / seconds,
        unet_rows_per_second=sum(answer.request.unet_rows for answer in images) / seconds,
        p50=_percentile(latencies + unfinished, 50),
        p95=_percentile(latencies + unfinished, 95),
        queue_wait_p50=_percentile(_queue_waits(answers), 50),
        queue_wait_p95=_percentile(_queue_waits(answers), 95),
        errors=_errors(answers),
        latencies=latencies,
        unfinished=unfinished,
        generator_cpu=cpu,
    )


def _latencies(answers: Sequence[Answer]) -> list[float]:
    return [round(a.ended - a.due, 4) for a in answers if a.is_image and a.ended is not None]


def _queue_waits(answers: Sequence[Answer]) -> list[float]:
    return [answer.queue_wait for answer in answers if answer.queue_wait is not None]


def _errors(answers: Sequence[Answer]) -> dict[str, int]:
    return dict(Counter(answer.error for answer in answers if answer.error is not None))


def _percentile(values: Sequence[float], percent: float) -> float | None:
    return percentile(values, percent) if values else None
