"""Runs the gateway in this process until it is asked to stop."""

import asyncio
import signal
import socket
import sys
from contextlib import suppress
from functools import partial
from types import FrameType
from typing import cast

import structlog
import uvicorn
from fastapi import FastAPI
from opentelemetry.trace import TracerProvider

from koala.descriptors import descriptor_limit, raise_descriptor_limit
from koala.errors import ModelNotFound
from koala.printable import printable
from koala.settings import Settings
from service import header_limit
from service.app import create_app
from service.connections import backlog
from service.gateway import BadSetting, Gateway
from service.protocol import GuardedProtocol

log = structlog.get_logger()


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
    raise_descriptor_limit()
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
    config = server_config(app, settings)
    # Answers need a moment to get out.
    server = _Server(config, gateway, patience=max(0.0, settings.drain_seconds - 1))
    log.info("listening", url=_url(settings, listener), model=gateway.card.id)
    # uvicorn raises the signal again once it has shut down; ours makes that the normal end.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
    with suppress(_Stopped):
        server.run(sockets=[listener])
    return 0


def server_config(app: FastAPI, settings: Settings) -> uvicorn.Config:
    """How uvicorn serves the gateway."""
    gateway: Gateway = app.state.gateway
    protocol = partial(
        GuardedProtocol,
        settings=settings,
        connections=gateway.connections,
        metrics=gateway.metrics,
    )
    return uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        ws="none",
        # On h11. httptools would answer methods that it does not know by itself.
        http=cast("type[asyncio.Protocol]", protocol),
        h11_max_incomplete_event_size=header_limit.MOST_BYTES,
        backlog=backlog(descriptor_limit()),
        # Else a pipelined request begins with the context of the one before: its job, its key.
        reset_contextvars=True,
        timeout_keep_alive=settings.keep_alive_seconds,
        timeout_graceful_shutdown=max(1, int(settings.drain_seconds)),
    )


def _stop(number: int, frame: FrameType | None) -> None:
    raise _Stopped


def _fail(message: str) -> int:
    print(f"koala: {printable(message)}", file=sys.stderr)
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
        listener.listen(backlog(descriptor_limit()))
    except OSError:
        listener.close()
        raise
    return listener


def _url(settings: Settings, listener: socket.socket) -> str:
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return f"http://{host}:{listener.getsockname()[1]}"
