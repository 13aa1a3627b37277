"""Runs the gateway in this process until it is asked to stop."""

import asyncio
import signal
import socket
import sys
from contextlib import suppress
from types import FrameType

import structlog
import uvicorn
from opentelemetry.trace import TracerProvider

from koala.errors import ModelNotFound
from koala.settings import Settings
from service import header_limit
from service.app import create_app
from service.gateway import BadSetting, Gateway

log = structlog.get_logger()

# Longer than clients keep an idle connection, so that it is they who close it.
_KEEP_ALIVE_SECONDS = 75
_BACKLOG = 2048


class _Stopped(Exception):
    """A signal asked us to stop."""


class _Server(uvicorn.Server):
    """A uvicorn that sends waiting clients away with an answer before it cuts them off."""

    def __init__(self, config: uvicorn.Config, gateway: Gateway, patience: float) -> None:
        super().__init__(config)
        self._gateway = gateway
        self._patience = patience

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop accepting, wait for what is in flight, and end."""
        dismissal = asyncio.get_running_loop().call_later(self._patience, self._gateway.dismiss)
        try:
            await super().shutdown(sockets)
        finally:
            dismissal.cancel()


def run(settings: Settings, tracer_provider: TracerProvider | None = None) -> int:
    """Serve until SIGINT or SIGTERM; the exit code.

    What a restart cannot cure (a taken port, an open address, an unknown model) is one line on
    stderr and exit code 1.
    """
    if settings.exposure is not None:
        return _fail(settings.exposure)
    try:
        app = create_app(settings, tracer_provider=tracer_provider)
    except (ModelNotFound, BadSetting) as error:
        return _fail(str(error))
    try:
        listener = _listen(settings)
    except OSError as error:
        return _fail(
            f"Cannot listen on {settings.host}:{settings.port}: {error.strerror}. Set KOALA_PORT "
            "to another port."
        )
    gateway: Gateway = app.state.gateway
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        ws="none",
        # httptools, if something brought it along, would answer methods it does not know by itself.
        http="h11",
        h11_max_incomplete_event_size=header_limit.MOST_BYTES,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=max(1, int(settings.drain_seconds)),
    )
    # Answers need a moment to get out.
    server = _Server(config, gateway, patience=max(0.0, settings.drain_seconds - 1))
    log.info("listening", url=_url(settings, listener), model=gateway.card.id)
    # uvicorn raises the signal again once it has shut down; ours makes that the normal end.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
    with suppress(_Stopped):
        server.run(sockets=[listener])
    return 0


def _stop(number: int, frame: FrameType | None) -> None:
    raise _Stopped


def _fail(message: str) -> int:
    print(f"koala: {message}", file=sys.stderr)
    return 1


def _listen(settings: Settings) -> socket.socket:
    family, kind, protocol, _, address = socket.getaddrinfo(
        settings.host, settings.port, type=socket.SOCK_STREAM
    )[0]
    # Without the protocol, asyncio does not take it for TCP and leaves Nagle's algorithm on: each
    # answer would wait 40 ms for the client's delayed acknowledgement.
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener


def _url(settings: Settings, listener: socket.socket) -> str:
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return f"http://{host}:{listener.getsockname()[1]}"
