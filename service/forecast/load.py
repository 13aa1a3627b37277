"""What is known of those who will come: how many did lately, and who of them comes back."""

from collections.abc import Sequence
from typing import Final

# The load of so many seconds is taken to go on.
WINDOW_SECONDS: Final = 60.0
# As if nobody had come for so long before: one job is no load.
_REST_SECONDS: Final = 5.0
# Who asks again within so many seconds did not wait for anything but the end.
_AT_ONCE_SECONDS: Final = 3.0
# A job's end is written down under the time that the worker's look at Redis' clock gave.
_SKEW_SECONDS: Final = 0.5


def share_returning(ends: Sequence[float], arrivals: Sequence[float]) -> float:
    """Of those whose jobs ended at ``ends``, the part that was followed by a job at once.

    As long as little is known, all are taken to return: told too long, a time disappoints nobody.

    Args:
        ends: Seconds on some clock, in any order.
        arrivals: The latest arrivals on the same clock, in any order.

    Returns:
        More than 0, and at most 1.
    """
    coming = sorted(arrivals, reverse=True)
    returned = 0
    for end in sorted(ends):
        while coming and coming[-1] < end - _SKEW_SECONDS:
            coming.pop()
        if coming and coming[-1] <= end + _AT_ONCE_SECONDS:
            coming.pop()
            returned += 1
    return (returned + 1) / (len(ends) + 1)


def arrival_rate(came: int, seconds: float, returning: float) -> float:
    """Jobs per second, of so many that came since the first of them did.

    A load that has just begun goes on where those who are served return; elsewhere it may be all
    that comes for a while.
    """
    rest = _REST_SECONDS + (1 - returning) * max(0.0, WINDOW_SECONDS - _REST_SECONDS - seconds)
    return max(0, came - 1) / (seconds + rest)
