"""Connections to Redis, made one way for both sides of the queue."""

import redis
import redis.asyncio
import redis.asyncio.retry
from redis.asyncio import BlockingConnectionPool
from redis.backoff import ExponentialWithJitterBackoff
from redis.retry import Retry

from koala.settings import Settings

_CONNECT_SECONDS = 5.0
_ANSWER_SECONDS = 2.0
_POOL_SIZE = 64
# Once, for a connection that broke while nobody used it. A server that does not answer costs as
# many timeouts as there are attempts; who is to outlast that tries anew.
_RETRIES = 1
_BACKOFF = ExponentialWithJitterBackoff(base=0.01, cap=0.1)


def connect(settings: Settings) -> redis.Redis:
    """A blocking client, as RQ wants it (bytes in, bytes out). Connects on first use.

    RQ lengthens the read timeout, redis-py's, where its blocking pop needs that.
    """
    return redis.Redis.from_url(
        settings.resolved_redis_url,
        socket_connect_timeout=_CONNECT_SECONDS,
        retry=Retry(_BACKOFF, _RETRIES),
        health_check_interval=30,
    )


def connect_async(settings: Settings) -> redis.asyncio.Redis:
    """An asyncio client for the gateway. Connects on first use.

    Calls beyond the size of its pool wait for a connection instead of failing, and a server that
    does not answer is an error after seconds: HTTP clients are waiting.
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
    return redis.asyncio.Redis.from_pool(pool)
