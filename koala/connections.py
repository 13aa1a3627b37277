"""Connections to Redis, made one way for both sides of the queue."""

import stat
from typing import Any

import redis
import redis.asyncio
import redis.asyncio.retry
from redis.asyncio import BlockingConnectionPool
from redis.asyncio import UnixDomainSocketConnection as AsyncUnixDomainSocketConnection
from redis.backoff import ExponentialWithJitterBackoff, NoBackoff
from redis.connection import UnixDomainSocketConnection
from redis.retry import Retry

from koala.private_folder import intruder
from koala.settings import Settings

_CONNECT_SECONDS = 5.0
_ANSWER_SECONDS = 2.0
_POOL_SIZE = 64
# Once, for a connection that broke while nobody used it. A server that does not answer costs as
# many timeouts as there are attempts; who is to outlast that tries anew.
_RETRIES = 1
_BACKOFF = ExponentialWithJitterBackoff(base=0.01, cap=0.1)


def untrusted_socket(settings: Settings) -> str | None:
    """Why another user could be the one who answers on the embedded socket, if so."""
    data, folder = settings.data_dir.resolve(), settings.embedded_socket.parent
    try:
        is_open = bool(data.stat().st_mode & stat.S_IWOTH)
    except FileNotFoundError:
        is_open = False
    if is_open:
        return (
            f"Every user may write to {data}, so a server in it cannot be trusted: run "
            f"`chmod o-w {data}`, or set KOALA_DATA_DIR to another folder."
        )
    reason = None if folder == data else intruder(folder)
    if reason is None:
        return None
    return (
        f"The folder {folder}, made for the embedded server's socket, cannot be trusted: {reason}. "
        "Remove it, or set KOALA_DATA_DIR to a shorter path, whose socket lies beside its data."
    )


def no_embedded_server(settings: Settings) -> str | None:
    """Why there is no embedded server to connect to, if there is none."""
    if settings.embedded_socket.is_socket():
        return None
    return (
        f"No embedded server runs on {settings.data_dir.resolve()}: `koala up` starts one; for a "
        "Redis of your own set KOALA_REDIS_URL."
    )


def connect(settings: Settings) -> redis.Redis:
    """A blocking client, as RQ wants it (bytes in, bytes out). Connects on first use.

    RQ lengthens the read timeout, redis-py's, where its blocking pop needs that.

    Raises:
        ValueError: ``redis_url`` is malformed.
    """
    pool = redis.ConnectionPool.from_url(
        settings.resolved_redis_url,
        socket_connect_timeout=_CONNECT_SECONDS,
        retry=Retry(_BACKOFF, _RETRIES),
        health_check_interval=30,
    )
    if settings.redis_url is None:
        pool.connection_class = _embedded_connection(settings)
    return redis.Redis.from_pool(pool)


def connect_embedded(settings: Settings) -> redis.Redis:
    """A client that tells at once whether the embedded server answers, without trying again."""
    pool = redis.ConnectionPool(
        connection_class=_embedded_connection(settings),
        path=str(settings.embedded_socket),
        socket_timeout=_ANSWER_SECONDS,
        retry=Retry(NoBackoff(), 0),
    )
    return redis.Redis.from_pool(pool)


def connect_async(settings: Settings) -> redis.asyncio.Redis:
    """An asyncio client for the gateway. Connects on first use.

    Calls beyond the size of its pool wait for a connection instead of failing, and a server that
    does not answer is an error after seconds: HTTP clients are waiting.

    Raises:
        ValueError: ``redis_url`` is malformed.
    """
    pool = BlockingConnectionPool.from_url(
        settings.resolved_redis_url,
        max_connections=_POOL_SIZE,
        timeout=_CONNECT_SECONDS,
        socket_connect_timeout=_ANSWER_SECONDS,
        socket_timeout=_ANSWER_SECONDS,
        retry=redis.asyncio.retry.Retry(_BACKOFF, _RETRIES),
        health_check_interval=30,
    )
    if settings.redis_url is None:
        pool.connection_class = _async_embedded_connection(settings)
    return redis.asyncio.Redis.from_pool(pool)


# Looked at each time a connection is made: the socket may have been deleted since the last one.
def _embedded_connection(settings: Settings) -> type[UnixDomainSocketConnection]:
    class EmbeddedConnection(UnixDomainSocketConnection):
        def connect_check_health(self, *args: Any, **kwargs: Any) -> None:
            _check_socket(settings)
            super().connect_check_health(*args, **kwargs)

    return EmbeddedConnection


def _async_embedded_connection(settings: Settings) -> type[AsyncUnixDomainSocketConnection]:
    class EmbeddedConnection(AsyncUnixDomainSocketConnection):
        async def connect_check_health(self, *args: Any, **kwargs: Any) -> None:
            _check_socket(settings)
            await super().connect_check_health(*args, **kwargs)

    return EmbeddedConnection


def _check_socket(settings: Settings) -> None:
    problem = untrusted_socket(settings) or no_embedded_server(settings)
    if problem is not None:
        raise redis.exceptions.ConnectionError(problem)
