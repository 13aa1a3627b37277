"""When a measured curve is to be measured again: what came out in a bad moment must not stay."""

from collections.abc import Hashable
from dataclasses import dataclass
from time import monotonic
from typing import Final, Generic, TypeVar

_FIRST_WAIT: Final = 60.0
_LONGEST_WAIT: Final = 3600.0

# Steps that take less than this share of their measured time contradict the measurement. So many of
# them settle it, if they are at least half of all; it is not asked for more often than that.
_CONTRADICTS: Final = 0.7
_CONTRADICTIONS: Final = 16
_SHORTEST_WAIT: Final = 5.0

G = TypeVar("G", bound=Hashable)


@dataclass(slots=True)
class _Record:
    looked_at: float
    wait: float = _FIRST_WAIT
    steps: int = 0
    quick: int = 0


class Looks(Generic[G]):
    """Decides by group when the next look at its curve is due.

    A look is due a minute after the last one, and each look that changes nothing doubles that, up
    to an hour. It is due sooner when steps turn out to be much quicker than measured.
    """

    def __init__(self) -> None:
        self._records: dict[G, _Record] = {}

    def measured(self, group: G) -> None:
        """The group was measured for the first time."""
        self._records[group] = _Record(monotonic())

    def note(self, group: G, seconds: float, expected: float) -> None:
        """Note what a step took and what it takes by the curve."""
        record = self._records.get(group)
        if record is not None:
            record.steps += 1
            record.quick += seconds < _CONTRADICTS * expected

    def due(self) -> list[G]:
        """The groups to look at now, if there is nothing better to do."""
        now = monotonic()
        return [group for group, record in self._records.items() if _is_due(record, now)]

    def looked(self, group: G, changed: bool) -> None:
        """The group was measured again, and ``changed`` tells whether that changed its curve."""
        wait = min(2 * self._records[group].wait, _LONGEST_WAIT)
        self._records[group] = _Record(monotonic(), _FIRST_WAIT if changed else wait)


def _is_due(record: _Record, now: float) -> bool:
    waited = now - record.looked_at
    is_contradicted = record.quick >= max(_CONTRADICTIONS, record.steps / 2)
    return waited >= (_SHORTEST_WAIT if is_contradicted else record.wait)
