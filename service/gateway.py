"""What the routes share: made once per application, given to each route as a dependency."""

import asyncio
from dataclasses import dataclass
from typing import Annotated

import redis.asyncio
from fastapi import Depends, Request

from koala.catalogue import ModelCard, resolve
from koala.clock import AsyncRedisClock
from koala.connections import connect_async
from koala.descriptors import descriptor_limit
from koala.keyfile import KeyFileError
from koala.lora import LoraFolder
from koala.metered_store import MeteredStore
from koala.queue import JobQueue
from koala.settings import Settings
from koala.store import ImageStore
from koala.unreadable import Unreadables
from service.connections import Connections, connection_limit
from service.feeds import Feeds
from service.fleet import Fleet
from service.forecast.forecasts import Forecasts
from service.forecast.ledger import Ledger
from service.hub import Hub
from service.keyring import Keyring
from service.metrics import Metrics
from service.rate_limits import RateLimits
from service.retention import Retention
from service.store_health import StoreHealth
from service.withdrawals import Withdrawals


class BadSetting(Exception):
    """A setting that no part can work with; the message names its variable."""


@dataclass(frozen=True)
class Gateway:
    """Everything a route needs. Without a keyring nobody has to log in."""

    settings: Settings
    card: ModelCard
    redis: redis.asyncio.Redis
    queue: JobQueue
    hub: Hub
    feeds: Feeds
    fleet: Fleet
    forecasts: Forecasts
    ledger: Ledger
    store: ImageStore
    store_health: StoreHealth
    loras: LoraFolder
    retention: Retention
    keyring: Keyring | None
    rate_limits: RateLimits
    withdrawals: Withdrawals
    metrics: Metrics
    connections: Connections
    # What goes on although the request that began it is over.
    tasks: set[asyncio.Task[None]]

    @classmethod
    def build(cls, settings: Settings) -> "Gateway":
        """Wire the parts together; connects to nothing yet.

        Raises:
            ModelNotFound: ``settings.model`` is no model.
            BadSetting: The URL of Redis or of the image store or the folder of LoRAs leads
                nowhere, or the API keys cannot be read.
        """
        metrics = Metrics()
        try:
            limit = connection_limit(settings, descriptor_limit())
        except ValueError as error:
            raise BadSetting(f"KOALA_MAX_CONNECTIONS: {error}.") from None
        try:
            connection = connect_async(settings)
        except ValueError as error:
            raise BadSetting(f"KOALA_REDIS_URL: {error}.") from None
        try:
            store = MeteredStore(settings.resolved_image_store, metrics.store)
        except (ValueError, ImportError) as error:
            raise BadSetting(f"KOALA_IMAGE_STORE: {error}.") from None
        try:
            loras = LoraFolder(settings.lora_dir)
        except ValueError as error:
            raise BadSetting(f"KOALA_LORA_DIR: {error}.") from None
        unreadables = Unreadables(lambda kind: metrics.unreadable_records.labels(kind).inc())
        queue = JobQueue(connection, settings, unreadables)
        tasks = set[asyncio.Task[None]]()
        fleet = Fleet(connection, queue.keys, unreadables)
        forecasts = Forecasts(connection, queue.keys, fleet, unreadables)
        ledger = Ledger(forecasts, metrics, tasks)
        return cls(
            settings=settings,
            card=resolve(settings.model, settings.model_revision),
            redis=connection,
            queue=queue,
            hub=Hub(connection, queue, on_end=ledger.end),
            feeds=Feeds(connection, queue.keys, unreadables),
            fleet=fleet,
            forecasts=forecasts,
            ledger=ledger,
            store=store,
            store_health=StoreHealth(store),
            loras=loras,
            retention=Retention(connection, queue.keys, store, settings, unreadables),
            keyring=_keyring(settings),
            rate_limits=RateLimits(connection, settings, queue.clock),
            withdrawals=Withdrawals(queue, metrics),
            metrics=metrics,
            connections=Connections(limit, metrics),
            tasks=tasks,
        )

    @property
    def clock(self) -> AsyncRedisClock:
        """Redis' time."""
        return self.queue.clock

    def dismiss(self) -> None:
        """Send all who wait or watch away, because the process is about to end."""
        self.hub.dismiss()
        self.feeds.dismiss()

    def base_url(self, request: Request) -> str:
        """The base of URLs in responses, without a slash at its end."""
        return (self.settings.public_url or str(request.base_url)).rstrip("/")


def _keyring(settings: Settings) -> Keyring | None:
    if not settings.login_required:
        if settings.private_images:
            raise BadSetting(
                "KOALA_PRIVATE_IMAGES needs API keys: set KOALA_API_KEYS or KOALA_API_KEYS_FILE."
            )
        return None
    try:
        return Keyring(settings)
    except KeyFileError as error:
        raise BadSetting(f"KOALA_API_KEYS_FILE: {error}.") from None


def _gateway(request: Request) -> Gateway:
    gateway: Gateway = request.app.state.gateway
    return gateway


GatewayDep = Annotated[Gateway, Depends(_gateway)]
