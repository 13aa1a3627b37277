"""Refuses requests whose headers are longer than any client of ours has a reason for."""

from typing import Final

from starlette.types import ASGIApp, Receive, Scope, Send

from koala.errors import HeadersTooLarge
from service.errors import error_response

# Also told to h11, which minds it in a head that comes in pieces; what comes at once it lets pass.
MOST_BYTES: Final = 32_768


class HeaderLimit:
    """Pure ASGI middleware."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] == "http":
            length = sum(len(name) + len(value) for name, value in scope["headers"])
            if length > MOST_BYTES:
                message = f"The request's headers are longer than {MOST_BYTES} bytes in all."
                await error_response(HeadersTooLarge(message))(scope, receive, send)
                return
        await self._app(scope, receive, send)
