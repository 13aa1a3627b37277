"""The gateway as an ASGI application."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware
from opentelemetry.trace import TracerProvider
from starlette.types import Scope

from koala import __version__
from koala.settings import Settings
from service import errors, openapi
from service.answer_headers import AnswerHeaders
from service.body_limit import BodyLimit
from service.connections import ConnectionLimit
from service.ending import end
from service.gateway import Gateway
from service.header_limit import HeaderLimit
from service.observe import QUIET_ROUTES, Observe
from service.routes import admin, docs, generations, health, home, images, jobs, models
from service.site_guard import SiteGuard
from service.webhooks.courier import Courier
from service.webhooks.message import image_generation_ended
from service.webhooks.pace import Pace

# What a page's scripts may read beside the body.
_EXPOSED_HEADERS: Final = (
    "ETag", "Location", "Preference-Applied", "Retry-After", "x-koala-job-id",
    "x-ratelimit-limit-requests", "x-ratelimit-remaining-requests", "x-ratelimit-reset-requests",
    "x-request-id", "x-should-retry",
)  # fmt: skip


def create_app(
    settings: Settings,
    webhook_pace: Pace | None = None,
    tracer_provider: TracerProvider | None = None,
) -> FastAPI:
    """The application; it connects to Redis when it is started, and starts without Redis too.

    Args:
        settings: The configuration.
        webhook_pace: When webhooks are tried again, if not as usual.
        tracer_provider: Makes a span of each request; without one nothing is traced.

    Raises:
        ModelNotFound: ``settings.model`` is no model.
        BadSetting: A URL in ``settings`` leads nowhere, or the API keys cannot be read.
    """
    gateway = Gateway.build(settings)
    courier = Courier(gateway, webhook_pace or Pace())

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        sweeping = asyncio.create_task(gateway.retention.run())
        try:
            async with gateway.withdrawals.running(), gateway.hub.running(), courier.running():
                yield
        finally:
            await end(sweeping)
            await gateway.store_health.close()
            await asyncio.gather(*gateway.tasks, return_exceptions=True)
            await gateway.feeds.close()
            await gateway.redis.aclose()

    app = FastAPI(
        title="koala-serve",
        version=__version__,
        description="Text-to-image with the KOALA models, in the form of OpenAI's Images API.",
        lifespan=lifespan,
        redirect_slashes=False,
        # Ours has a content security policy.
        docs_url=None,
        redoc_url=None,
        responses={
            "4XX": {"model": errors.ErrorBody, "description": "The request is at fault."},
            "5XX": {"model": errors.ErrorBody, "description": "The server is at fault."},
        },
        telemetry={
            "tracing": tracer_provider is not None,
            "tracer_provider": tracer_provider,
            "operation_spans": False,
            "exclude": _is_quiet,
            # Metrics and logs have ways of their own.
            "metrics": False,
            "logs": False,
            "auto_configure": False,
        },
    )
    app.state.gateway = gateway
    errors.install(app)
    app.add_middleware(BodyLimit, max_bytes=settings.max_body_bytes, seconds=settings.body_seconds)
    # What is added later is farther out.
    app.add_middleware(SiteGuard, settings=settings)
    app.add_middleware(HeaderLimit)
    app.add_middleware(ConnectionLimit, connections=gateway.connections)
    app.add_middleware(Observe, metrics=gateway.metrics)
    if settings.allowed_origins:
        # Around Observe, whose own errors a page must be able to read too.
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.allowed_origins,
            allow_methods=["GET", "HEAD", "POST"],
            allow_headers=["*"],
            expose_headers=_EXPOSED_HEADERS,
        )
    app.add_middleware(AnswerHeaders)
    for part in (generations, jobs, images, models, admin, health, home, docs):
        app.include_router(part.router)
    # Without a 4XX of its own it would get FastAPI's, of which nothing here makes use.
    app.webhooks.post(
        "image.generation",
        status_code=204,
        response_description="Received; any 2xx will do.",
        responses={"4XX": {"description": "Tried again later; after 410 never."}},
    )(image_generation_ended)
    openapi.install(app, gateway.card, settings, gateway.loras)
    return app


def _is_quiet(scope: Scope) -> bool:
    return scope["path"] in QUIET_ROUTES
