"""How long a client bears with a server that has gone away."""

import asyncio
import time
from typing import Final

# A gateway that is replaced is back by then.
_PATIENCE_SECONDS: Final = 30.0
_PAUSE_SECONDS: Final = 1.0


class ServerError(Exception):
    """The server refused or failed, or nobody answers; the message is for the person typing."""


class Patience:
    """Waits between the tries of one connection, and gives up half a minute after its loss.

    Args:
        base_url: Where the server is.
        consolation: A sentence on what happens without us.
    """

    def __init__(self, base_url: str, consolation: str = "") -> None:
        self._base_url = base_url
        self._consolation = consolation
        self._lost: float | None = None

    def restore(self) -> None:
        """Note that the connection is there."""
        self._lost = None

    async def wait(self, reason: str) -> None:
        """Wait until the next try.

        Raises:
            ServerError: It has been too long.
        """
        now = time.monotonic()
        self._lost = self._lost or now
        if now - self._lost > _PATIENCE_SECONDS:
            message = f"{self._base_url} was lost and does not come back: {reason.rstrip('.')}."
            raise ServerError(f"{message} {self._consolation}".strip())
        await asyncio.sleep(_PAUSE_SECONDS)
