"""Events of a job: one capped, expiring Redis Stream each, and two wake-up channels for all.

The stream holds the data and survives a lost connection; a channel only says that there is
something to read. An entry's id in the stream is the event's id.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, Protocol

from koala.keys import Keys

MAX_EVENTS: Final = 64


class EventType(StrEnum):
    """What can happen to a job."""

    QUEUED = "queued"
    # Only told to those who watch, never stored.
    POSITION = "position"
    ADMITTED = "admitted"
    STEP = "step"
    PREVIEW = "preview"
    REQUEUED = "requeued"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_terminal(self) -> bool:
        """Whether nothing follows."""
        return self in (EventType.COMPLETED, EventType.FAILED, EventType.CANCELLED)


# What readers rely on.
_DATA: Final[Mapping[EventType, Mapping[str, type]]] = {
    EventType.STEP: {"step": int, "steps": int},
    EventType.PREVIEW: {"image": int, "preview": int, "steps": int, "b64_json": str},
    EventType.FAILED: {"error": dict},
}


@dataclass(frozen=True, slots=True)
class JobEvent:
    """One event: ``data`` is a JSON object, ``id`` the stream entry's id."""

    type: EventType
    data: dict[str, Any]
    id: str = ""

    @property
    def milliseconds(self) -> int:
        """When it was stored, in Redis' time: an ``id`` begins with that."""
        return int(self.id.partition("-")[0])


class _Commands(Protocol):
    """The part of a Redis client or pipeline, blocking or not, that publishing needs."""

    def xadd(self, name: str, fields: Any, *, maxlen: int, approximate: bool) -> Any: ...
    def expire(self, name: str, time: int) -> Any: ...
    def publish(self, channel: str, message: str) -> Any: ...


def publish(commands: _Commands, keys: Keys, job_id: str, event: JobEvent, ttl: int) -> None:
    """Append ``event`` to the job's stream and wake the readers.

    Args:
        commands: A pipeline: it is the caller's to execute, so that an event can be part of the
            transaction it tells of.
        keys: Keys of the job's queue.
        job_id: The job.
        event: What happened; its ``id`` is not used.
        ttl: Seconds until the whole stream expires.
    """
    stream = keys.events(job_id)
    commands.xadd(stream, encode(event), maxlen=MAX_EVENTS, approximate=False)
    commands.expire(stream, ttl)
    is_progress = event.type in (EventType.STEP, EventType.PREVIEW)
    channel = keys.progress if is_progress else keys.wake
    commands.publish(channel, f"{job_id} {event.type}")


def encode(event: JobEvent) -> dict[str, str]:
    """The fields of a stream entry."""
    return {"type": str(event.type), "data": json.dumps(event.data, separators=(",", ":"))}


class UnreadableEvent(ValueError):
    """An entry of a stream of events is none; the message says why."""


def decode(entry_id: bytes, fields: Mapping[bytes, bytes]) -> JobEvent | None:
    """The event in a stream entry; ``None`` for a type that only a newer version knows.

    Raises:
        UnreadableEvent: The entry is no event, or lacks what its type has to tell.
    """
    try:
        name = fields[b"type"].decode()
        if name not in set(EventType):
            return None
        data = json.loads(fields[b"data"])
    except (KeyError, ValueError) as error:
        raise UnreadableEvent(repr(error)) from None
    event_type = EventType(name)
    if not isinstance(data, dict):
        raise UnreadableEvent("its data is no JSON object")
    for field, kind in _DATA.get(event_type, {}).items():
        if not isinstance(data.get(field), kind):
            raise UnreadableEvent(f"{field!r} is missing or of another type")
    return JobEvent(event_type, data, entry_id.decode())


def parse_wake(message: bytes) -> tuple[str, EventType]:
    """Job id and event type of a message on the wake-up channel."""
    job_id, _, event_type = message.decode().partition(" ")
    return job_id, EventType(event_type)
