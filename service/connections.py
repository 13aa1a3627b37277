"""How many connections one gateway has open, and which is closed when there are too many.

Each connection costs a file descriptor, and a process that has none left can accept no client, not
even a health check. So their number is bounded. A connection is *busy* while a request on it is
being read, worked on or answered; otherwise it is *silent*: new, between two requests, or sending
a request's headers. Busy ones are never closed. At the bound the one that has been silent longest
makes room for a new one. Where all are busy, a few more are let in, and of what they ask only
health checks and metrics are answered.
"""

import time
from typing import Final, Protocol

import structlog
from starlette.types import ASGIApp, Receive, Scope, Send

from koala.errors import TooManyConnections
from koala.settings import Settings
from service.errors import error_response
from service.metrics import Metrics
from service.observe import QUIET_ROUTES

log = structlog.get_logger()

# Let in beyond the bound: as many silent ones, and as many health checks.
RESERVE: Final = 16
# For all else that takes descriptors: 64 connections to Redis, 40 threads that read images, 16
# webhooks, both reserves, and what the process itself needs.
_SPARE: Final = 192
# So many take about 60 MB while they are silent; more is for operators who know why.
_MOST_BY_DEFAULT: Final = 10_000
_BACKLOG: Final = 2048
_LOG_SECONDS: Final = 60.0


class Connection(Protocol):
    """What can be closed to make room."""

    def evict(self) -> None:
        """Close it at once."""


class Connections:
    """The open connections of one gateway.

    Args:
        limit: How many may be open, the reserve aside.
        metrics: Where they are counted.
    """

    def __init__(self, limit: int, metrics: Metrics) -> None:
        self.limit = limit
        self._metrics = metrics
        self._open: set[Connection] = set()
        # A dict keeps the order: the first has been silent longest.
        self._silent: dict[Connection, None] = {}
        self._crowded = 0
        self._logged_at = -_LOG_SECONDS
        metrics.connections.set_function(lambda: len(self._open))

    def opened(self, connection: Connection) -> None:
        """Note a new connection, which is silent; close another if there are too many."""
        self._open.add(connection)
        self._silent[connection] = None
        while len(self._silent) > max(RESERVE, self.limit - self._busy):
            longest = next(iter(self._silent))
            self.closed(longest)
            self._crowd("limit")
            longest.evict()

    def silent(self, connection: Connection) -> None:
        """Note that a connection waits for a request; if it did before, since then."""
        if connection in self._open:
            self._silent.setdefault(connection)

    def busy(self, connection: Connection) -> None:
        """Note that a request has come in on a connection."""
        self._silent.pop(connection, None)

    def closed(self, connection: Connection) -> None:
        """Forget a connection."""
        self._open.discard(connection)
        self._silent.pop(connection, None)

    def refuse(self, path: str) -> bool:
        """Whether there are too many busy connections to answer a request that has come in."""
        refused = self._busy > self.limit + (RESERVE if path in QUIET_ROUTES else 0)
        if refused:
            self._crowd("refused")
        return refused

    @property
    def _busy(self) -> int:
        return len(self._open) - len(self._silent)

    def _crowd(self, reason: str) -> None:
        self._metrics.connections_closed.labels(reason).inc()
        self._crowded += 1
        now = time.monotonic()
        if now - self._logged_at >= _LOG_SECONDS:
            log.warning(
                "the limit of connections is reached",
                limit=self.limit,
                open=len(self._open),
                busy=self._busy,
                closed_or_refused=self._crowded,
            )
            self._logged_at, self._crowded = now, 0


class ConnectionLimit:
    """Pure ASGI middleware that refuses what comes in on connections beyond the bound."""

    def __init__(self, app: ASGIApp, connections: Connections) -> None:
        self._app = app
        self._connections = connections

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] == "http" and self._connections.refuse(scope["path"]):
            refusal = TooManyConnections(
                f"This gateway has {self._connections.limit} requests open, which is its limit.",
                retry_after=1,
                headers={"Connection": "close"},
            )
            await error_response(refusal)(scope, receive, send)
            return
        await self._app(scope, receive, send)


def backlog(descriptors: int) -> int:
    """How many connections may wait to be accepted: the event loop takes all of them at once."""
    return min(_BACKLOG, descriptors // 4)


def connection_limit(settings: Settings, descriptors: int) -> int:
    """How many connections a gateway may have open that may have so many descriptors.

    Raises:
        ValueError: There are too few.
    """
    room = descriptors - backlog(descriptors) - _SPARE
    if room < RESERVE:
        raise ValueError(
            f"this process may have only {descriptors} files open, which is not enough for a "
            "gateway: raise the limit (ulimit -n)"
        )
    wanted = settings.max_connections
    if wanted is None:
        return min(room, _MOST_BY_DEFAULT)
    if wanted > room:
        raise ValueError(
            f"this process may have {descriptors} files open, which is enough for {room} "
            f"connections, not for {wanted}: raise the limit (ulimit -n)"
        )
    return wanted
