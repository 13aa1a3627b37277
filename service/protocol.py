"""HTTP/1.1 as uvicorn speaks it, with what it lacks.

- **Time limits.** A client must say something, send its headers, and take its answer in time. (How
  long a body may take is the business of :mod:`service.body_limit`, which can answer.)
- **A bounded number of connections**, see :mod:`service.connections`.
- **Half-closed clients.** A client that shuts down its writing side after its request, as
  ``nc -N`` does, still gets an answer that needs no waiting. What waits hears of it as of a
  hang-up, for the two look the same from here.
- **Absolute-form request targets** (``GET http://host/path``), which RFC 9112 wants served.
- **Hang-ups behind pipelined requests.** uvicorn stops reading at the first of them and would not
  hear of the end of the connection until the answer is written.
- **Bodies in absurdly small chunks** are refused, see :class:`_Parser`.

uvicorn's own class is built for being replaced, not for being extended; what is relied upon here is
pinned by ``tests/service/test_protocol.py``.
"""

import asyncio
import enum
import fcntl
import json
import re
import sys
import termios
from typing import Any, Final, cast
from urllib.parse import unquote

import h11
from starlette.types import Message, Receive, Scope, Send
from uvicorn import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from koala.errors import InvalidRequest, KoalaError, RequestTimeout
from koala.settings import Settings
from service import header_limit
from service.body_limit import SLOWEST_BYTES_PER_SECOND
from service.connections import Connections
from service.metrics import Metrics

_ABSOLUTE: Final = re.compile(rb"https?://([^/]*)(/.*)?", re.IGNORECASE | re.DOTALL)
# So much of requests that wait for their turn is read, to hear of a hang-up behind them.
_MOST_PIPELINED: Final = 65_536
# A body may come in so many chunks of any size, and in one more for each KiB.
_MOST_CHUNKS: Final = 4096


class _Phase(enum.Enum):
    """What a connection is doing; values are reasons to close it, as metrics tell most of them."""

    NEW = "new"
    HEADERS = "headers"
    BUSY = "busy"
    # The answer came before the end of the request, which is now read and thrown away.
    REST_OF_BODY = "body"
    KEPT_ALIVE = "keep_alive"


class _Parser(h11.Connection):
    """h11 that refuses bodies in absurdly small chunks.

    A chunk of one byte costs as much time as one of 64 KiB, and a read from the network may hold
    tens of thousands of them: until all are parsed, which takes seconds, all other clients wait.
    """

    def __init__(self, most_bytes: int) -> None:
        super().__init__(h11.SERVER, most_bytes)
        self._chunks = 0
        self._body_bytes = 0

    def next_event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        """As h11 has it."""
        event = super().next_event()
        if isinstance(event, h11.Request):
            self._chunks = self._body_bytes = 0
        elif isinstance(event, h11.Data):
            self._chunks += event.chunk_start
            self._body_bytes += len(event.data)
            if self._chunks > _MOST_CHUNKS + self._body_bytes // 1024:
                raise h11.RemoteProtocolError("The body's chunks are too small")
        return event


class GuardedProtocol(H11Protocol):
    """One connection.

    Args:
        config: As uvicorn gives it.
        server_state: As uvicorn gives it.
        app_state: As uvicorn gives it.
        _loop: As uvicorn gives it.
        settings: The time limits.
        connections: Of which this becomes one.
        metrics: Where connections that are closed for a reason are counted.
    """

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        settings: Settings,
        connections: Connections,
        metrics: Metrics,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.conn = _Parser(header_limit.MOST_BYTES)
        self._application = self.app
        self.app = cast("Any", self._run)
        self._settings = settings
        self._open_connections = connections
        self._metrics = metrics
        self._phase = _Phase.NEW
        self._deadline: asyncio.TimerHandle | None = None
        self._unread_deadline: asyncio.TimerHandle | None = None
        self._unread = 0
        self._half_closed = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the first request."""
        super().connection_made(transport)
        # So that writing is "paused" as long as anything at all is left to be written.
        transport.set_write_buffer_limits(high=0)
        self._limit(self._settings.new_connection_seconds)
        self._open_connections.opened(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._limit(None)
        self._stop_watching_unread()
        self._open_connections.closed(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take in what the client sends."""
        super().data_received(data)
        if (
            self.flow.read_paused
            and self.conn.their_state is h11.DONE
            and len(self.conn.trailing_data[0]) < _MOST_PIPELINED
        ):
            self.flow.resume_reading()
        self._look()

    def eof_received(self) -> bool | None:  # type: ignore[override]
        """Take in that the client will send no more; true: keep the connection for the answer."""
        cycle = self.cycle
        if cycle is None or cycle.response_complete or cycle.more_body:
            return None
        self._half_closed = True
        # Wakes a wait for a hang-up.
        cycle.message_event.set()
        return True

    def on_response_complete(self) -> None:
        """Go on with the next request, if there is one."""
        super().on_response_complete()
        if self._half_closed and self.cycle.response_complete:
            self.transport.close()
        self._look()

    def pause_writing(self) -> None:
        """Note that the client does not take its answer as fast as it is written."""
        super().pause_writing()
        self._watch_unread()
        self._look()

    def resume_writing(self) -> None:
        """Note that nothing is left to be written."""
        super().resume_writing()
        self._stop_watching_unread()
        self._look()

    def send_400_response(self, msg: str) -> None:
        """Answer what is not HTTP, in the form of all our errors."""
        self._refuse(InvalidRequest(msg, code="invalid_http"))

    def evict(self) -> None:
        """Close the connection at once, to make room for another."""
        self.transport.abort()

    async def _run(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The application, with requests as it expects them."""
        _use_origin_form(scope)
        has_whole_body = False

        async def receive_or_hang_up() -> Message:
            nonlocal has_whole_body
            if has_whole_body and self._half_closed:
                return {"type": "http.disconnect"}
            message = await receive()
            if message["type"] == "http.request":
                if has_whole_body:
                    # uvicorn says it again when it is woken for nothing.
                    return {"type": "http.disconnect"}
                has_whole_body = not message["more_body"]
            return message

        await self._application(
            cast("Any", scope), cast("Any", receive_or_hang_up), cast("Any", send)
        )

    def _look(self) -> None:
        """See what the connection is doing now, and limit its time."""
        before, self._phase = self._phase, self._current_phase()
        if self._phase is before:
            return
        match self._phase:
            case _Phase.HEADERS:
                self._limit(self._settings.header_seconds)
            case _Phase.REST_OF_BODY:
                self._limit(self._settings.body_seconds)
            case _Phase.KEPT_ALIVE:
                # uvicorn's own timer is off if the body's end came after the answer.
                self._limit(self._settings.keep_alive_seconds)
            case _:
                self._limit(None)
        if self._phase is _Phase.BUSY:
            self._open_connections.busy(self)
        else:
            self._open_connections.silent(self)

    def _current_phase(self) -> _Phase:
        if self.cycle is not None and (not self.cycle.response_complete or self.flow.write_paused):
            return _Phase.BUSY
        if self.conn.their_state is h11.SEND_BODY:
            return _Phase.REST_OF_BODY
        if self.conn.trailing_data[0]:
            return _Phase.HEADERS
        return _Phase.NEW if self.cycle is None else _Phase.KEPT_ALIVE

    def _limit(self, seconds: float | None) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = None if seconds is None else self.loop.call_later(seconds, self._expire)

    def _expire(self) -> None:
        if self.transport.is_closing():
            return
        if self._phase is not _Phase.KEPT_ALIVE:
            self._count(self._phase.value)
        if self._phase is _Phase.HEADERS:
            seconds = self._settings.header_seconds
            self._refuse(
                RequestTimeout(f"The request's headers did not arrive within {seconds:g} seconds.")
            )
        else:
            self.transport.close()

    def _watch_unread(self) -> None:
        self._unread = _unread_bytes(self.transport)
        self._unread_deadline = self.loop.call_later(
            self._settings.unread_seconds, self._check_unread
        )

    def _stop_watching_unread(self) -> None:
        if self._unread_deadline is not None:
            self._unread_deadline.cancel()
            self._unread_deadline = None

    def _check_unread(self) -> None:
        taken = self._unread - _unread_bytes(self.transport)
        if taken < SLOWEST_BYTES_PER_SECOND * self._settings.unread_seconds:
            self._count("unread")
            # Closing would wait until all is written.
            self.transport.abort()
        else:
            self._watch_unread()

    def _refuse(self, error: KoalaError) -> None:
        """Answer in the application's place, and hang up."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            body = json.dumps(error.body()).encode()
            headers = [
                ("Content-Type", "application/json"),
                ("Content-Length", str(len(body))),
                ("Connection", "close"),
            ]
            for event in (
                h11.Response(status_code=error.status, headers=headers),
                h11.Data(data=body),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event) or b"")
        if self.cycle is not None:
            # For an application at work on the same request it is as if the client had hung up.
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.transport.close()

    def _count(self, reason: str) -> None:
        self._metrics.connections_closed.labels(reason).inc()


def _use_origin_form(scope: Scope) -> None:
    """Turn ``http://host/path`` into ``/path``, and its host into the Host header."""
    match = _ABSOLUTE.fullmatch(scope["raw_path"])
    if match is None:
        return
    authority, path = match[1], match[2] or b"/"
    scope["raw_path"], scope["path"] = path, unquote(path.decode("ascii"))
    # RFC 9112, 3.2.2: a Host header that says something else is ignored.
    others = [(name, value) for name, value in scope["headers"] if name != b"host"]
    scope["headers"] = [(b"host", authority), *others]


def _unread_bytes(transport: asyncio.Transport) -> int:
    """What the client has not yet taken: in our buffer and, where it can be told, in the kernel's.

    The kernel takes hundreds of kilobytes at once from us and long after what it hands a slow
    client bit by bit: by our buffer alone such a client would seem to stand still.
    """
    waiting = transport.get_write_buffer_size()
    if sys.platform == "linux":
        socket = transport.get_extra_info("socket")
        queued = fcntl.ioctl(socket.fileno(), termios.TIOCOUTQ, bytes(4))
        waiting += int.from_bytes(queued, sys.byteorder)
    return waiting
