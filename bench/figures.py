"""The arithmetic behind every figure: percentiles, and rates within a window."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from bench.workloads import Request


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of one request. Times are seconds on ``time.monotonic``'s clock.

    Args:
        request: What was asked for.
        due: When it was to be sent; latency counts from here, also if the sender was late.
        ended: When the answer was there; ``None`` while it is not.
        queue_wait: Seconds until its drawing began, where the server tells.
        error: Why there is no image; ``None`` if there is one.
    """

    request: Request
    due: float
    ended: float | None = None
    queue_wait: float | None = None
    error: str | None = None

    @property
    def is_image(self) -> bool:
        """Whether an image came back."""
        return self.ended is not None and self.error is None


@dataclass(frozen=True, slots=True)
class Rate:
    """Work done within a span of ``seconds``."""

    seconds: float
    images: int
    unet_rows: int

    @property
    def images_per_second(self) -> float:
        """Images per second."""
        return self.images / self.seconds

    @property
    def unet_rows_per_second(self) -> float:
        """U-Net rows per second that the images needed: images weighted by their cost."""
        return self.unet_rows / self.seconds


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that at least ``percent`` of ``values`` do not exceed (nearest rank).

    Raises:
        ValueError: There are no values.
    """
    if not values:
        raise ValueError("there is no percentile of nothing")
    return sorted(values)[max(0, math.ceil(len(values) * percent / 100) - 1)]


def rate_within(answers: Sequence[Answer], start: float, end: float) -> Rate:
    """What was done between ``start`` and ``end``.

    Servers that batch answer in bursts, and a short window would catch one burst more or less. So
    the span goes from the last image before ``start`` to the last one before ``end``.
    """
    images = sorted((a.ended, a.request.unet_rows) for a in answers if a.is_image and a.ended)
    before = [ended for ended, _ in images if ended <= start]
    inside = [(ended, rows) for ended, rows in images if start < ended <= end]
    if not inside:
        return Rate(end - start, 0, 0)
    first = before[-1] if before else start
    return Rate(inside[-1][0] - first, len(inside), sum(rows for _, rows in inside))
