"""Who waits, who is in which group, and whose turn it is."""

from collections.abc import Callable, Hashable, Iterator
from typing import Any, Generic, Protocol, TypeAlias, TypeVar

from worker.batching.turns import DeficitRoundRobin

# Width and height of an image in pixels: only equal sizes fit one U-Net call.
Size: TypeAlias = tuple[int, int]


class Batchable(Protocol):
    """What the batcher needs to know of a sample."""

    @property
    def key(self) -> Any:
        """Its name: hashable, and unique in the batcher."""

    @property
    def size(self) -> Size:
        """Width and height in pixels."""

    @property
    def rows(self) -> int:
        """Rows that it takes in a U-Net call."""


T = TypeVar("T", bound=Batchable)


class Batcher(Generic[T]):
    """Admits waiting samples to the group of their size, and lets the groups take turns.

    Samples of one size are admitted in the order of their arrival, none overtakes another; one
    size never holds back another.

    Args:
        cap: Most rows of a U-Net call at a size. A sample that alone takes more gets in alone.
    """

    def __init__(self, cap: Callable[[Size], int]) -> None:
        self._cap = cap
        self._waiting: dict[Hashable, T] = {}
        self._groups: dict[Size, dict[Hashable, T]] = {}
        self._turns: DeficitRoundRobin[Size] = DeficitRoundRobin()

    def __contains__(self, key: Hashable) -> bool:
        return key in self._waiting or any(key in group for group in self._groups.values())

    @property
    def waiting(self) -> int:
        """Samples not admitted."""
        return len(self._waiting)

    @property
    def sizes(self) -> list[Size]:
        """The sizes of the admitted samples."""
        return list(self._groups)

    @property
    def rows(self) -> int:
        """Rows that all admitted samples take."""
        return sum(self.rows_of(size) for size in self._groups)

    @property
    def has_room(self) -> bool:
        """Whether one more sample, of whichever size, would be of use now.

        Full batches of the sizes that are here keep the device busy; who would have to wait for
        longer than until the next admission is better off elsewhere.
        """
        rows = {size: self.rows_of(size) for size in self._groups}
        for item in self._waiting.values():
            taken = rows.get(item.size, 0)
            if taken and taken + item.rows > self._cap(item.size):
                return False
            rows[item.size] = taken + item.rows
        return sum(rows[size] / self._cap(size) for size in rows) < max(1, len(rows))

    def heads(self, count: int) -> list[T]:
        """The first ``count`` waiting samples."""
        return [item for item, _ in zip(self._waiting.values(), range(count), strict=False)]

    def members(self, size: Size) -> list[T]:
        """The admitted samples of one size, first admitted first."""
        return list(self._groups.get(size, {}).values())

    def rows_of(self, size: Size) -> int:
        """Rows that the admitted samples of one size take."""
        return sum(item.rows for item in self._groups.get(size, {}).values())

    def add(self, item: T) -> None:
        """Let a sample wait, behind all others."""
        self._waiting[item.key] = item

    def remove(self, key: Hashable) -> T | None:
        """Take a sample out wherever it is; ``None`` if it is unknown."""
        waiting = self._waiting.pop(key, None)
        if waiting is not None:
            return waiting
        for size, group in self._groups.items():
            if key in group:
                item = group.pop(key)
                if not group:
                    del self._groups[size]
                    self._turns.leave(size)
                return item
        return None

    def put_back(self, key: Hashable) -> None:
        """Let an admitted sample wait again, before all others.

        Raises:
            KeyError: No such sample is admitted.
        """
        if key in self._waiting:
            raise KeyError(key)
        item = self.remove(key)
        if item is None:
            raise KeyError(key)
        self._waiting = {key: item, **self._waiting}

    def shrink(self, size: Size, rows: int) -> list[T]:
        """Put the youngest of a group back until the others fit ``rows``; who had to go.

        The oldest sample stays, however many rows it takes.
        """
        gone: list[T] = []
        members = self.members(size)
        while len(members) > 1 and self.rows_of(size) > rows:
            youngest = members.pop()
            self.put_back(youngest.key)
            gone.append(youngest)
        return gone

    def admit(self) -> list[T]:
        """Move waiting samples into their groups as far as there is room; who got in."""
        return list(self._admissible())

    def choose(self, cost: Callable[[Size, int], float]) -> Size | None:
        """The size to advance now; ``None`` if nobody is admitted.

        Args:
            cost: Seconds that a U-Net call takes at a size and a number of rows.
        """
        return self._turns.choose(lambda size: cost(size, self.rows_of(size)))

    def _admissible(self) -> Iterator[T]:
        full: set[Size] = set()
        for key, item in list(self._waiting.items()):
            if item.size in full:
                continue
            rows = self.rows_of(item.size)
            if rows and rows + item.rows > self._cap(item.size):
                full.add(item.size)
                continue
            del self._waiting[key]
            self._groups.setdefault(item.size, {})[key] = item
            self._turns.join(item.size)
            yield item
