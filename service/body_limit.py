"""Refuses request bodies that are compressed, or over a limit, announced or not."""

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class BodyLimit:
    """Pure ASGI middleware that counts a body as it is read.

    An announced length is not looked at: what counts is what comes. Starlette's own limit would
    answer in plain text; this one leaves the answer to the exception handlers. A compressed body
    could be small here and huge once it is unpacked, so none is taken.
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
        encoding = Headers(scope=scope).get("content-encoding", "identity").strip().lower()
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            if message["type"] == "http.request":
                # HTTPException is the one kind that FastAPI lets through while it reads a body.
                if encoding not in ("", "identity"):
                    raise HTTPException(415, _encoded(encoding), {"Accept-Encoding": "identity"})
                received += len(message.get("body", b""))
                if received > self._max_bytes:
                    raise HTTPException(413, self._refusal)
            return message

        await self._app(scope, counted, send)


def _encoded(encoding: str) -> str:
    return (
        f"The request body must not be compressed: send it without `Content-Encoding`, which is "
        f"{encoding[:80]!r}."
    )
