"""What other threads have put into a queue by now."""

from collections.abc import Iterator
from queue import Empty, SimpleQueue
from typing import TypeVar

T = TypeVar("T")


def drain(queue: SimpleQueue[T]) -> Iterator[T]:
    """Take out what is in ``queue``, without waiting for more."""
    while True:
        try:
            yield queue.get_nowait()
        except Empty:
            return
