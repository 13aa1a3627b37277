"""What is stored and cannot be read: passed over, counted, and logged once.

One record that another version or another program left must not spoil a list, a sweep or a loop
for all the others.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, Literal

import redis
import structlog

from koala.events import JobEvent, UnreadableEvent, decode

log = structlog.get_logger()

Kind = Literal["job", "result", "event", "worker", "image"]

# Of so many records it is remembered that they were counted and logged.
_REMEMBERED: Final = 4096


class Unreadables:
    """Takes note of what cannot be read, of each record once.

    Args:
        count: Called with the kind of each record that is new.
    """

    def __init__(self, count: Callable[[Kind], None] = lambda kind: None) -> None:
        self._count = count
        self._seen: OrderedDict[tuple[Kind, str], None] = OrderedDict()

    def note(self, kind: Kind, name: str, reason: str) -> None:
        """Note that a record cannot be read."""
        if (kind, name) in self._seen:
            self._seen.move_to_end((kind, name))
            return
        self._seen[kind, name] = None
        while len(self._seen) > _REMEMBERED:
            self._seen.popitem(last=False)
        self._count(kind)
        log.warning("a stored record cannot be read", kind=kind, name=name, reason=reason)

    def events(self, job_id: str, entries: Any) -> list[JobEvent]:
        """The events of a job in entries of its stream, without those that cannot be read.

        ``entries`` may be the error in place of a reply, see :func:`replies`.
        """
        if isinstance(entries, redis.ResponseError):
            self.note("event", job_id, str(entries))
            return []
        return [event for event in self._decoded(job_id, entries) if event is not None]

    def _decoded(
        self, job_id: str, entries: Iterable[tuple[bytes, Mapping[bytes, bytes]]]
    ) -> Iterable[JobEvent | None]:
        for entry_id, fields in entries:
            try:
                yield decode(entry_id, fields)
            except UnreadableEvent as error:
                self.note("event", f"{job_id} {entry_id.decode()}", str(error))


async def replies(pipeline: Any) -> list[Any]:
    """The replies to an asyncio pipeline, for a key of another type the error in its place.

    Raises:
        redis.RedisError: Redis does not answer, or does not obey for another reason.
    """
    found: list[Any] = await pipeline.execute(raise_on_error=False)
    for reply in found:
        if isinstance(reply, Exception) and not is_wrong_type(reply):
            raise reply
    return found


def is_wrong_type(error: Exception) -> bool:
    """Whether a key holds another type of value than the command is for."""
    return isinstance(error, redis.ResponseError) and "WRONGTYPE" in str(error)
