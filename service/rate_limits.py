"""How many generation requests each caller may send in a while."""

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv6Address, ip_address
from typing import TYPE_CHECKING, Final

import redis.asyncio

from koala.clock import AsyncRedisClock
from koala.errors import RateLimited
from koala.rates import parse_rate_limit
from koala.settings import Settings

if TYPE_CHECKING:
    from limits import RateLimitItem
    from limits.aio.strategies import MovingWindowRateLimiter

# The openai client waits no longer than that before it tries again.
_LONGEST_RETRY_AFTER: Final = 120

_parse = lru_cache(maxsize=1024)(parse_rate_limit)


@dataclass(frozen=True, slots=True)
class Allowance:
    """What is left of one window.

    Attributes:
        item: The window: so many requests in so many seconds.
        remaining: Requests that may still come now.
        reset_seconds: Seconds until the oldest request in the window no longer counts.
    """

    item: "RateLimitItem"
    remaining: int
    reset_seconds: float

    def headers(self) -> dict[str, str]:
        """The same under OpenAI's names."""
        return {
            "x-ratelimit-limit-requests": str(self.item.amount),
            "x-ratelimit-remaining-requests": str(self.remaining),
            "x-ratelimit-reset-requests": f"{math.ceil(self.reset_seconds)}s",
        }


class RateLimits:
    """Moving windows in Redis, common to all gateways of a queue.

    Args:
        connection: An asyncio client, whose pool is shared.
        settings: The default limit and the queue's name.
        clock: The time that windows are in.
    """

    def __init__(
        self, connection: redis.asyncio.Redis, settings: Settings, clock: AsyncRedisClock
    ) -> None:
        self._clock = clock
        self._default = settings.rate_limit
        can_be_needed = settings.rate_limit is not None or settings.login_required
        self._limiter = _limiter(connection, settings, clock) if can_be_needed else None

    async def spend(self, who: str, own_limit: str | None) -> Allowance | None:
        """Count one request; what is left of the tightest window, ``None`` without a limit.

        A request that is refused counts in no window.

        Args:
            who: The caller.
            own_limit: The limit that goes before ``KOALA_RATE_LIMIT``.

        Raises:
            RateLimited: A window is used up.
            redis.RedisError: Redis cannot be reached.
        """
        text = own_limit or self._default
        if text is None:
            return None
        limiter = self._limiter
        assert limiter is not None, "only keys and settings bring limits"
        items = _parse(text)
        await self._clock.refresh()
        if len(items) > 1:
            # What one window refuses must not use up another; a single one refuses by itself.
            _refuse_if_used_up(await self._look(limiter, items, who))
        hits = await asyncio.gather(*(limiter.hit(item, who) for item in items))
        allowances = await self._look(limiter, items, who)
        refused = [allowance for allowance, hit in zip(allowances, hits, strict=True) if not hit]
        if refused:
            raise _refusal(refused)
        return min(allowances, key=lambda allowance: allowance.remaining)

    async def _look(
        self, limiter: "MovingWindowRateLimiter", items: "Sequence[RateLimitItem]", who: str
    ) -> list[Allowance]:
        stats = await asyncio.gather(*(limiter.get_window_stats(item, who) for item in items))
        now = self._clock.time()
        return [
            Allowance(item, max(0, window.remaining), max(0.0, window.reset_time - now))
            for item, window in zip(items, stats, strict=True)
        ]


def caller(name: str, address: str | None) -> str:
    """Whose requests are counted together: a key's, or without keys those of one address.

    Whoever has an IPv6 address has 2^64 of them, so the network counts.
    """
    if name:
        return f"key:{name}"
    try:
        ip = ip_address(address or "")
    except ValueError:
        return f"address:{address}"
    if isinstance(ip, IPv6Address):
        ip = ip.ipv4_mapped or IPv6Address(int(ip) >> 64 << 64)
    return f"address:{ip}"


def _limiter(
    connection: redis.asyncio.Redis, settings: Settings, clock: AsyncRedisClock
) -> "MovingWindowRateLimiter":
    # A quarter of a second of imports, for those who need them.
    from limits.aio.strategies import MovingWindowRateLimiter

    from service.moving_windows import MovingWindows

    storage = MovingWindows(connection, clock, key_prefix=f"koala:{settings.queue}:rate")
    return MovingWindowRateLimiter(storage)


def _refuse_if_used_up(allowances: Sequence[Allowance]) -> None:
    used_up = [allowance for allowance in allowances if allowance.remaining == 0]
    if used_up:
        raise _refusal(used_up)


def _refusal(used_up: Sequence[Allowance]) -> RateLimited:
    last = max(used_up, key=lambda allowance: allowance.reset_seconds)
    seconds = max(1, math.ceil(last.reset_seconds))
    headers = last.headers()
    if seconds > _LONGEST_RETRY_AFTER:
        headers["x-should-retry"] = "false"
    return RateLimited(
        f"The rate limit of {_in_words(last.item)} is reached; try again in {seconds} s.",
        retry_after=seconds,
        headers=headers,
    )


def _in_words(item: "RateLimitItem") -> str:
    unit = item.GRANULARITY.name
    period = unit if item.multiples == 1 else f"{item.multiples} {unit}s"
    return f"{item.amount} request{'s' if item.amount > 1 else ''} per {period}"
