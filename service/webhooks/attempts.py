"""One attempt to deliver a webhook, and what is to follow from it."""

from dataclasses import dataclass
from typing import Literal

import httpx

from koala.spec import JobRecord
from service.gateway import Gateway
from service.webhooks.guard import AddressRefused
from service.webhooks.message import message_for
from service.webhooks.pace import Pace
from service.webhooks.sender import Sender, Undelivered

Outcome = Literal["delivered", "retried", "given_up", "gone", "refused", "expired"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came of an attempt: ``delay`` seconds until the next one, ``None`` for never."""

    outcome: Outcome
    reason: str
    delay: float | None = None


class Attempts:
    """Makes attempts; what Standard Webhooks recommends decides what follows.

    A 2xx is success, 410 says that nobody wants to hear any more, and everything else is a failure
    that is tried again, for what is wrong with a receiver can be mended.

    Args:
        gateway: Where jobs are rendered.
        sender: Sends.
        pace: When to try again.
    """

    def __init__(self, gateway: Gateway, sender: Sender, pace: Pace) -> None:
        self._gateway = gateway
        self._sender = sender
        self._pace = pace

    async def make(self, record: JobRecord, url: str, number: int) -> Verdict:
        """Attempt ``number`` (from 1) to tell ``url`` of the end of a job."""
        try:
            message = await message_for(self._gateway, record)
            answer = await self._sender.send(url, record.id, message.model_dump_json())
        except AddressRefused as error:
            return Verdict("refused", str(error))
        except Undelivered as error:
            return self.failed(number, str(error))
        reason = f"the answer was {answer.status}"
        if answer.is_success:
            return Verdict("delivered", reason)
        if answer.status == httpx.codes.GONE:
            return Verdict("gone", reason)
        return self.failed(number, reason, answer.retry_after)

    def failed(self, number: int, reason: str, retry_after: float | None = None) -> Verdict:
        """What follows from a failure of attempt ``number``; ``retry_after``: see ``Pace``."""
        delay = self._pace.delay(number, retry_after)
        return Verdict("given_up" if delay is None else "retried", reason, delay)
