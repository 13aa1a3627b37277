"""Headers that every answer has, and those that a route wants on whatever answer comes."""

from collections.abc import Mapping
from typing import Final

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_SCOPE_KEY: Final = "koala.answer_headers"

# What a page or an image needs otherwise it says itself.
_HARDENING: Final[Mapping[str, str]] = {
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


def add_to_answer(request: Request, headers: Mapping[str, str]) -> None:
    """Put ``headers`` on the answer to ``request``, be it a result or an error."""
    request.scope[_SCOPE_KEY].update(headers)


class AnswerHeaders:
    """Pure ASGI middleware; what an answer sets itself stays."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        wanted = dict(_HARDENING)
        scope[_SCOPE_KEY] = wanted

        async def completed(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in wanted.items():
                    headers.setdefault(name, value)
            await send(message)

        await self._app(scope, receive, completed)
