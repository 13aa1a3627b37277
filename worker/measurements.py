"""What the engine measured, for those who look from outside."""

from koala.workers import MeasuredSize
from worker.engine import Capacity, Tick


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


def expected_seconds(capacity: Capacity, tick: Tick) -> float | None:
    """What the calls of a tick take by the measured curve; ``None`` where nothing is measured."""
    if not capacity.calibrations:
        return None
    seconds = 0.0 if tick.size is None else capacity.seconds(tick.size, tick.rows)
    if tick.decoded:
        # Which size it was the tick does not tell; the decoder is a small part of the time.
        known = [each.decode_seconds for each in capacity.calibrations.values()]
        seconds += tick.decoded * min((each for each in known if each is not None), default=0.0)
    return seconds
