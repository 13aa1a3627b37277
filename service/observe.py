"""Around every request: an id, one log line, metrics, and an answer when all else fails."""

import time
from typing import Final
from uuid import uuid4

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from koala.errors import KoalaError
from koala.trail import CURRENT, REQUEST_ID, Trail
from service.errors import error_response
from service.metrics import Metrics

log = structlog.get_logger()

_METHODS = frozenset({"GET", "HEAD", "POST"})
# Asked for every few seconds by machines.
QUIET_ROUTES: Final = frozenset({"/healthz", "/readyz", "/metrics"})


class Observe:
    """Pure ASGI middleware; around it is only what never fails."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        headers = Headers(scope=scope)
        request_id = _request_id(headers)
        trail = Trail.of_request(request_id, headers)
        status = 0

        async def tagged(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        CURRENT.set(trail)
        with structlog.contextvars.bound_contextvars(**trail.ids):
            try:
                await self._app(scope, receive, tagged)
            except Exception:
                log.exception("unexpected error", **_shown(scope))
                if status:
                    # Half a response is out: only a broken connection can tell the client.
                    raise
                answer = error_response(
                    KoalaError(f"Something went wrong here; it was logged as {request_id}.")
                )
                await answer(scope, receive, tagged)
            finally:
                self._record(scope, status, time.perf_counter() - began)

    def _record(self, scope: Scope, status: int, seconds: float) -> None:
        # Only the template: paths would make a time series each.
        route = getattr(scope.get("route"), "path", "unknown")
        method = scope["method"] if scope["method"] in _METHODS else "any"
        self._metrics.requests.labels(method, route, status).inc()
        self._metrics.request_seconds.labels(method, route).observe(seconds)
        write = log.debug if route in QUIET_ROUTES else log.info
        write(
            "request",
            **_shown(scope),
            status=status,
            milliseconds=round(1000 * seconds, 1),
        )


def _shown(scope: Scope) -> dict[str, str]:
    # A client may send 32 KiB of either.
    return {"method": scope["method"][:20], "path": scope["path"][:500]}


def _request_id(headers: Headers) -> str:
    given = headers.get("x-request-id", "")
    return given if REQUEST_ID.fullmatch(given) else f"req_{uuid4().hex}"
