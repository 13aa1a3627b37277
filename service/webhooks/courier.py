"""Delivers the webhooks of the outbox, in every gateway, for as long as it runs."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Final

import httpx
import redis
import structlog

from koala.errors import JobNotFound, JobUnreadable
from koala.spec import JobRecord
from koala.states import JobState
from service.ending import end
from service.gateway import Gateway
from service.keep_going import FIRST_BACKOFF, keep_going
from service.webhooks.attempts import Attempts, Verdict
from service.webhooks.lanes import Lanes
from service.webhooks.outbox import LEASE_SECONDS, Claim, Outbox
from service.webhooks.pace import Pace
from service.webhooks.sender import Sender

log = structlog.get_logger()

# So many attempts at once.
_PARALLEL: Final = 16

# What a gateway that ends leaves to the attempts under way.
_PARTING_SECONDS: Final = 1.0


class Courier:
    """Claims what is due and sends it.

    Args:
        gateway: The application's parts.
        pace: How often it looks, and how long it waits after a failure.
    """

    def __init__(self, gateway: Gateway, pace: Pace) -> None:
        self._gateway = gateway
        self._pace = pace
        self._outbox = Outbox(gateway.redis, gateway.queue.keys)
        settings = gateway.settings
        self._sender = Sender(
            settings.webhook_secrets,
            gateway.clock,
            allow_private=settings.webhook_allow_private,
        )
        self._attempts = Attempts(gateway, self._sender, pace)
        self._lanes = Lanes()
        self._under_way: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Deliver for as long as the context lasts.

        Without a secret nothing is delivered: another gateway may have one.
        """
        if self._gateway.settings.webhook_secret is None:
            yield
            return
        run = asyncio.create_task(keep_going(self._round, "courier"))
        try:
            yield
        finally:
            await end(run)
            await self._part()
            await self._sender.close()

    async def _round(self) -> None:
        free = _PARALLEL - len(self._under_way)
        await self._gateway.clock.refresh()
        claims = await self._outbox.claim(free)
        for claim in claims:
            task = asyncio.create_task(self._handle(claim))
            self._under_way.add(task)
            task.add_done_callback(self._under_way.discard)
        if len(claims) < free:
            # Nothing else is due.
            await asyncio.sleep(self._pace.poll_seconds)
        elif self._under_way:
            await asyncio.wait(self._under_way, return_when=asyncio.FIRST_COMPLETED)

    async def _part(self) -> None:
        if self._under_way:
            await asyncio.wait(self._under_way, timeout=_PARTING_SECONDS)
        for task in self._under_way:
            task.cancel()
        await asyncio.gather(*self._under_way, return_exceptions=True)

    async def _handle(self, claim: Claim) -> None:
        try:
            record = await self._read(claim)
            if record is None:
                self._count(claim, Verdict("expired", "the job has expired"))
            elif record.spec.webhook_url is None or not JobState(record.state).is_terminal:
                log.error("a job in the outbox has no webhook to send", job_id=claim.job_id)
                await self._outbox.remove(claim)
            elif claim.attempts > self._pace.most_attempts:
                await self._finish(claim, Verdict("given_up", "its senders died"))
            else:
                await self._deliver(claim, record, record.spec.webhook_url)
        except JobUnreadable as error:
            # A gateway of a newer version may be able to tell of it.
            await self._finish(claim, self._attempts.failed(claim.attempts, error.message))
        except redis.RedisError as error:
            # The lease runs out, and somebody tries again.
            log.warning("the courier has lost the outbox", job_id=claim.job_id, error=str(error))
        except asyncio.CancelledError:
            with suppress(redis.RedisError):
                await self._outbox.give_back(claim)
            raise
        except Exception as error:
            # A message that cannot be made must end some day, like one that nobody takes.
            log.exception("a webhook could not be sent", job_id=claim.job_id)
            await self._finish(claim, self._attempts.failed(claim.attempts, repr(error)))

    async def _read(self, claim: Claim) -> JobRecord | None:
        if not claim.attempts:
            return None
        try:
            return await self._gateway.queue.get(claim.job_id)
        except JobNotFound:
            await self._outbox.remove(claim)
            return None

    async def _deliver(self, claim: Claim, record: JobRecord, url: str) -> None:
        host = httpx.URL(url).host
        come_back = self._lanes.enter(host)
        if come_back:
            await self._outbox.give_back(claim, come_back)
            return
        began = time.perf_counter()
        try:
            verdict = await self._attempts.make(record, url, claim.attempts)
        finally:
            seconds = time.perf_counter() - began
            self._lanes.leave(host, seconds)
        self._gateway.metrics.webhook_seconds.observe(seconds)
        await self._finish(claim, verdict, host=host)

    async def _finish(self, claim: Claim, verdict: Verdict, **more: str) -> None:
        """Count the verdict and write it down, if need be until the lease is over: what was
        delivered is not to be sent again because Redis was away for a moment."""
        self._count(claim, verdict, **more)
        deadline = time.monotonic() + LEASE_SECONDS
        while True:
            try:
                if verdict.delay is None:
                    await self._outbox.remove(claim)
                else:
                    await self._outbox.put_off(claim, verdict.delay)
                return
            except redis.RedisError as error:
                if time.monotonic() > deadline:
                    log.error("a webhook's end is lost", job_id=claim.job_id, error=str(error))
                    return
                await asyncio.sleep(FIRST_BACKOFF)

    def _count(self, claim: Claim, verdict: Verdict, **more: str) -> None:
        self._gateway.metrics.webhooks.labels(verdict.outcome).inc()
        write = log.info if verdict.outcome == "delivered" else log.warning
        write(
            "webhook",
            job_id=claim.job_id,
            outcome=verdict.outcome,
            attempt=claim.attempts,
            reason=verdict.reason,
            retry_in=None if verdict.delay is None else round(verdict.delay, 1),
            # Not the URL: its query may be a secret.
            **more,
        )
