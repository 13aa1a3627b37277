"""One attempt: a signed POST in the form of Standard Webhooks, and what the receiver said."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final

import httpcore
import httpx
from standardwebhooks import Webhook

from koala import __version__
from koala.clock import RedisClock
from service.webhooks.guard import GuardedBackend

_CONNECT_SECONDS: Final = 5.0
_TOTAL_SECONDS: Final = 15.0


class Undelivered(Exception):
    """Nobody answered, or not in time, or not in HTTP; the message says which."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A receiver's answer: the status, and the seconds that ``Retry-After`` asks for, if any."""

    status: int
    retry_after: float | None = None

    @property
    def is_success(self) -> bool:
        """Whether the message has arrived."""
        return 200 <= self.status < 300


class Sender:
    """Signs and sends; knows neither redirects, proxies nor cookies.

    Args:
        secrets: Each one signs.
        clock: The time that is signed: a receiver refuses what is minutes off.
        allow_private: Whether addresses that are not public may be sent to.
    """

    def __init__(self, secrets: Sequence[str], clock: RedisClock, *, allow_private: bool) -> None:
        self._clock = clock
        self._signers = [Webhook(secret) for secret in secrets]
        # httpcore and not httpx: only here can a backend be given by a public name.
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=httpx.create_ssl_context(),
            max_connections=None,
            max_keepalive_connections=0,
            network_backend=GuardedBackend(allow_private=allow_private),
        )

    async def send(self, url: str, message_id: str, body: str) -> Answer:
        """Make one attempt to deliver ``body``, a JSON text, to ``url``.

        The answer's body is not read: the status says all.

        Raises:
            Undelivered: There was no answer.
            AddressRefused: The address is none that a webhook may go to.
        """
        parsed = httpx.URL(url)
        target = httpcore.URL(
            scheme=parsed.raw_scheme,
            host=parsed.raw_host,
            port=parsed.port,
            target=parsed.raw_path,
        )
        try:
            async with (
                asyncio.timeout(_TOTAL_SECONDS),
                self._pool.stream(
                    "POST",
                    target,
                    headers=self._headers(parsed, message_id, body),
                    content=body.encode(),
                    extensions={"timeout": {"connect": _CONNECT_SECONDS}},
                ) as response,
            ):
                return Answer(response.status, _retry_after(response.headers, self._clock.now()))
        except TimeoutError:
            raise Undelivered(f"no answer within {_TOTAL_SECONDS:g} s") from None
        except (
            httpcore.NetworkError,
            httpcore.TimeoutException,
            httpcore.ProtocolError,
        ) as error:
            raise Undelivered(str(error) or type(error).__name__) from error

    async def close(self) -> None:
        """Close what is open."""
        await self._pool.aclose()

    def _headers(
        self, url: httpx.URL, message_id: str, body: str
    ) -> dict[bytes | str, bytes | str]:
        now = self._clock.now()
        signatures = (signer.sign(message_id, now, body) for signer in self._signers)
        return {
            "Host": url.netloc.decode("ascii"),
            "Content-Type": "application/json",
            "User-Agent": f"koala-serve/{__version__}",
            "webhook-id": message_id,
            "webhook-timestamp": str(int(now.timestamp())),
            "webhook-signature": " ".join(signatures),
        }


def _retry_after(headers: Sequence[tuple[bytes, bytes]], now: datetime) -> float | None:
    """Seconds, from either of the two forms that HTTP has for it; ``None`` for any other."""
    text = _first(headers, b"retry-after")
    if text.isascii() and text.isdigit():
        return float(text)
    moment = _moment(text)
    if moment is None:
        return None
    # The receiver's clock may be wrong too: if it says what time it has, that counts.
    since = _moment(_first(headers, b"date")) or now
    return max(0.0, (moment - since).total_seconds())


def _first(headers: Sequence[tuple[bytes, bytes]], wanted: bytes) -> str:
    values = (value.decode("latin-1").strip() for name, value in headers if name.lower() == wanted)
    return next(values, "")


def _moment(text: str) -> datetime | None:
    """An HTTP date; ``None``: it is none."""
    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
