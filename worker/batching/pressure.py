"""What running out of memory teaches: less at once, and slowly more again."""

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

_FIRST_PATIENCE: Final = 64
_LONGEST_PATIENCE: Final = 4096

G = TypeVar("G", bound=Hashable)


@dataclass(slots=True)
class _Limit:
    most: int
    goal: int
    patience: int
    clean: int = 0


class Pressure(Generic[G]):
    """Limits that fall by half when memory runs out and recover by a quarter after many calls.

    Each relapse doubles the number of clean calls that a recovery takes.
    """

    def __init__(self) -> None:
        self._limits: dict[G, _Limit] = {}
        self._patience: dict[G, int] = {}

    def limit(self, group: G) -> int | None:
        """The most that may be tried at once; ``None``: as much as is wanted."""
        limit = self._limits.get(group)
        return None if limit is None else limit.most

    def ran_out(self, group: G, tried: int) -> int:
        """Memory ran out at ``tried`` at once; the new limit, at least 1."""
        most = max(1, tried // 2)
        patience = self._patience.get(group, _FIRST_PATIENCE)
        self._patience[group] = min(2 * patience, _LONGEST_PATIENCE)
        before = self._limits.get(group)
        goal = max(tried, before.goal) if before else tried
        self._limits[group] = _Limit(most, goal, patience)
        return most

    def went_well(self, group: G) -> None:
        """A call went through."""
        limit = self._limits.get(group)
        if limit is None:
            return
        limit.clean += 1
        if limit.clean >= limit.patience:
            limit.clean = 0
            limit.most += max(1, limit.most // 4)
            if limit.most >= limit.goal:
                del self._limits[group]
