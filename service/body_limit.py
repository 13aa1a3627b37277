"""Refuses request bodies over a limit, whether they announce their length or not."""

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class BodyLimit:
    """Pure ASGI middleware that counts a body as it is read.

    An announced length is not looked at: what counts is what comes. Starlette's own limit would
    answer in plain text; this one leaves the answer to the exception handlers.
    """

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._refusal = f"The request body is larger than {max_bytes} bytes, which is the limit."

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            if message["type"] == "http.request":
                received += len(message.get("body", b""))
                if received > self._max_bytes:
                    # The one kind of exception that FastAPI lets through while it reads a body.
                    raise HTTPException(413, self._refusal)
            return message

        await self._app(scope, counted, send)
