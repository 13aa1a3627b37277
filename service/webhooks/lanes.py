"""Room for each receiving host, so that a slow one holds up nobody but itself."""

import time
from collections import Counter
from typing import Final

# So many attempts to one host at once.
WIDTH: Final = 4

# How long an attempt may take to a host of which nothing is known yet, and at least.
_UNKNOWN_SECONDS: Final = 0.4
_LEAST_SECONDS: Final = 0.04

_LONGEST_LINE_SECONDS: Final = 300.0


class Lanes:
    """Lets a few attempts to each host pass and sends the others to stand in line.

    Whoever is sent away is told to come back when, at the host's pace, it would be its turn: so a
    thousand webhooks for a dead host are not looked at again and again in vain.
    """

    def __init__(self) -> None:
        self._under_way: Counter[str] = Counter()
        self._pace: dict[str, float] = {}
        self._end_of_line: dict[str, float] = {}

    def enter(self, host: str) -> float:
        """Pass (0, to be followed by :meth:`leave`), or the seconds after which to come back."""
        if self._under_way[host] < WIDTH:
            self._under_way[host] += 1
            return 0.0
        now = time.monotonic()
        turn = self._pace.get(host, _UNKNOWN_SECONDS) / WIDTH
        end = max(now, self._end_of_line.get(host, now)) + turn
        self._end_of_line[host] = min(end, now + _LONGEST_LINE_SECONDS)
        return self._end_of_line[host] - now

    def leave(self, host: str, seconds: float) -> None:
        """An attempt is over; it took ``seconds``."""
        self._under_way[host] -= 1
        self._pace[host] = max(seconds, _LEAST_SECONDS)
        if not self._under_way[host]:
            # Nobody is slow any more, and hosts are many.
            del self._under_way[host], self._pace[host]
            self._end_of_line.pop(host, None)
