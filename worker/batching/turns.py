"""Deficit round robin (Shreedhar and Varghese, SIGCOMM 1995), weighted by measured cost."""

from collections.abc import Callable
from typing import Generic, TypeVar

G = TypeVar("G")


class DeficitRoundRobin(Generic[G]):
    """Shares the device's time evenly between groups whose steps cost unlike amounts of it.

    The group whose turn begins is credited a quantum, the cost of the dearest group's step, and
    advances for as long as its credit covers its cost. So every group advances at least once a
    round, a cheap one as often as its share allows, and while two groups are both there the times
    they have had differ by less than two quanta.
    """

    def __init__(self) -> None:
        # In the order of their turns: the first one is having it.
        self._credits: dict[G, float] = {}
        self._turn_began = False

    def __len__(self) -> int:
        return len(self._credits)

    def join(self, group: G) -> None:
        """Let ``group`` take part, its first turn after those of all who are here."""
        self._credits.setdefault(group, 0.0)

    def leave(self, group: G) -> None:
        """Take ``group`` out; what is left of its credit is forfeited.

        Raises:
            KeyError: It takes no part.
        """
        has_turn = group == next(iter(self._credits), None)
        del self._credits[group]
        if has_turn:
            self._turn_began = False

    def choose(self, cost: Callable[[G], float]) -> G | None:
        """The group to advance now, charged with its cost; ``None`` if there is none.

        Args:
            cost: Seconds that a group's next step takes, above 0.
        """
        if not self._credits:
            return None
        costs = {group: cost(group) for group in self._credits}
        quantum = max(costs.values())
        while True:
            group = next(iter(self._credits))
            if not self._turn_began:
                self._credits[group] += quantum
                self._turn_began = True
            if self._credits[group] >= costs[group]:
                self._credits[group] -= costs[group]
                return group
            self._credits[group] = self._credits.pop(group)
            self._turn_began = False
