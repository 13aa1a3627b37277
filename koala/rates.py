"""Rate limits as people write them: ``60/minute``, ``5/second;1000/day``."""

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from limits import RateLimitItem

# Redis remembers the time of each request that counts.
_MOST_REQUESTS: Final = 100_000


def parse_rate_limit(text: str) -> "tuple[RateLimitItem, ...]":
    """The windows that ``text`` asks for; all of them hold at once.

    Raises:
        ValueError: It is malformed; the message quotes it and shows how to write one.
    """
    # It costs a tenth of a second, and most parts have no rate limit.
    from limits import parse_many

    try:
        items = tuple(parse_many(text))
    except ValueError:
        raise ValueError(
            f"{text[:80]!r} is no rate limit: write it as 60/minute, or 5/second;1000/day for "
            "several (second, minute, hour, day, month, year)"
        ) from None
    if not all(1 <= item.amount <= _MOST_REQUESTS for item in items):
        raise ValueError(
            f"{text[:80]!r} is no rate limit: the number of requests must be from 1 to "
            f"{_MOST_REQUESTS}"
        )
    return items
