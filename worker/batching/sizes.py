"""What follows for one size of image from what was measured at some sizes."""

from collections.abc import Collection, Mapping
from typing import Final

from worker.batching.batcher import Size
from worker.batching.curve import StepCurve

# A guided image takes two rows: in one call wherever they fit.
_GUIDED_ROWS: Final = 2


def pixels_of(size: Size) -> int:
    """Pixels of an image."""
    width, height = size
    return width * height


def nearest_size(size: Size, known: Collection[Size]) -> Size:
    """``size`` if it is known, else the known one that comes nearest in pixels.

    Raises:
        ValueError: None is known.
    """
    if size in known:
        return size
    return min(known, key=lambda other: abs(pixels_of(other) - pixels_of(size)))


def curve_at(size: Size, curves: Mapping[Size, StepCurve]) -> StepCurve:
    """The curve of ``size``, made from that of the nearest size where it was not measured.

    Raises:
        ValueError: No size was measured.
    """
    nearest = nearest_size(size, curves)
    if nearest == size:
        return curves[size]
    return curves[nearest].scaled(pixels_of(size) / pixels_of(nearest))


def profitable_rows(
    curve: StepCurve, most: int | None = None, target_seconds: float | None = None
) -> int:
    """Rows of a U-Net call that pay.

    Args:
        curve: What calls take.
        most: Most rows, as the operator wants it.
        target_seconds: Seconds that a call should take at the most, as the operator wants it.
    """
    pays = curve.cap(least=_GUIDED_ROWS, target_seconds=target_seconds)
    return pays if most is None else min(pays, most)
