"""What the engine measured, for those who look from outside."""

from koala.workers import MeasuredSize
from worker.engine import Capacity


def measured_sizes(capacity: Capacity) -> list[MeasuredSize]:
    """The measured sizes, smallest first. May be called from any thread."""
    measured = [
        MeasuredSize(
            width=size[0],
            height=size[1],
            max_rows=capacity.cap(size),
            step_seconds=dict(calibration.curve.points),
            decode_seconds=calibration.decode_seconds,
        )
        for size, calibration in list(capacity.calibrations.items())
    ]
    return sorted(measured, key=lambda size: (size.width * size.height, size.name))
