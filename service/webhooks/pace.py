"""When an attempt is followed by another one."""

import random
from dataclasses import dataclass
from typing import Final

_MINUTE: Final = 60.0
_HOUR: Final = 3600.0

# Nobody can make us wait for longer than most jobs are kept.
_LONGEST_DELAY: Final = 24 * _HOUR


@dataclass(frozen=True, slots=True)
class Pace:
    """Delays in seconds: ``delays`` between attempts, ``poll_seconds`` between looks.

    With these the last of nine attempts comes about 20 hours after the first. Each delay is longer
    or shorter by up to a share of ``jitter``, so that what failed together does not come back
    together.
    """

    delays: tuple[float, ...] = (
        5.0,
        30.0,
        2 * _MINUTE,
        10 * _MINUTE,
        _HOUR,
        3 * _HOUR,
        6 * _HOUR,
        10 * _HOUR,
    )
    jitter: float = 0.1
    poll_seconds: float = 0.5

    @property
    def most_attempts(self) -> int:
        """How many attempts there are."""
        return len(self.delays) + 1

    def delay(self, attempts: int, retry_after: float | None = None) -> float | None:
        """Seconds until the next attempt after ``attempts`` of them; ``None``: there is no next.

        What the receiver asked for (``retry_after``) prolongs the delay, within reason.
        """
        if attempts >= self.most_attempts:
            return None
        delay = self.delays[attempts - 1] * random.uniform(1 - self.jitter, 1 + self.jitter)
        return max(delay, min(retry_after or 0.0, _LONGEST_DELAY))
