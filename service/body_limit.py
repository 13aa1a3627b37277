"""Refuses request bodies that are compressed, over a limit, announced or not, or too slow."""

import asyncio
from typing import Final

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# A client that is slower than this is not waited for.
SLOWEST_BYTES_PER_SECOND: Final = 1024


class BodyLimit:
    """Pure ASGI middleware that counts a body as it is read, and looks at the clock.

    An announced length is not looked at: what counts is what comes. Starlette's own limit would
    answer in plain text; this one leaves the answer to the exception handlers. A compressed body
    could be small here and huge once it is unpacked, so none is taken.
    """

    def __init__(self, app: ASGIApp, max_bytes: int, seconds: float) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._seconds = seconds
        self._refusal = f"The request body is larger than {max_bytes} bytes, which is the limit."

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        encoding = Headers(scope=scope).get("content-encoding", "identity").strip().lower()
        received = 0
        is_whole = False
        # Only while the application reads: when it does not, the client cannot send.
        began: float | None = None

        is_answered = False

        async def noticed(message: Message) -> None:
            nonlocal is_answered
            is_answered = True
            await send(message)

        async def guarded() -> Message:
            try:
                return await counted()
            except HTTPException:
                if is_answered:
                    # Too late for another answer: it ends like a hang-up.
                    return {"type": "http.disconnect"}
                raise

        async def counted() -> Message:
            nonlocal received, is_whole, began
            if is_whole:
                # What is left to receive is the end of the connection.
                return await receive()
            now = asyncio.get_running_loop().time()
            began = now if began is None else began
            allowed = self._seconds + received / SLOWEST_BYTES_PER_SECOND
            # HTTPException is the one kind that FastAPI lets through while it reads a body.
            try:
                async with asyncio.timeout_at(began + allowed):
                    message = await receive()
            except TimeoutError:
                raise HTTPException(408, _late(allowed), {"Connection": "close"}) from None
            if message["type"] == "http.request":
                is_whole = not message.get("more_body", False)
                received += len(message.get("body", b""))
                if encoding not in ("", "identity") and (received or not is_whole):
                    raise HTTPException(415, _encoded(encoding), {"Accept-Encoding": "identity"})
                if received > self._max_bytes:
                    raise HTTPException(413, self._refusal)
            return message

        await self._app(scope, guarded, noticed)


def _late(seconds: float) -> str:
    return f"The request body did not arrive within {seconds:.3g} seconds."


def _encoded(encoding: str) -> str:
    return (
        f"The request body must not be compressed: send it without `Content-Encoding`, which is "
        f"{encoding[:80]!r}."
    )
