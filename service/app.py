"""The gateway as an ASGI application."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from koala import __version__
from koala.settings import Settings
from service import errors
from service.body_limit import BodyLimit
from service.gateway import Gateway
from service.observe import Observe
from service.routes import generations, health, home, images, jobs, models
from service.webhooks.courier import Courier
from service.webhooks.message import image_generation_ended
from service.webhooks.pace import Pace


def create_app(settings: Settings, webhook_pace: Pace | None = None) -> FastAPI:
    """The application; it connects to Redis when it is started, and starts without Redis too.

    Args:
        settings: The configuration.
        webhook_pace: When webhooks are tried again, if not as usual.

    Raises:
        ModelNotFound: ``settings.model`` is no model.
        BadSetting: A URL in ``settings`` leads nowhere.
    """
    gateway = Gateway.build(settings)
    courier = Courier(gateway, webhook_pace or Pace())

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        sweeping = asyncio.create_task(gateway.retention.run())
        try:
            async with gateway.hub.running(), courier.running():
                yield
        finally:
            sweeping.cancel()
            await asyncio.gather(sweeping, *gateway.tasks, return_exceptions=True)
            await gateway.feeds.close()
            await gateway.redis.aclose()

    app = FastAPI(
        title="koala-serve",
        version=__version__,
        description="Text-to-image with the KOALA models, in the form of OpenAI's Images API.",
        lifespan=lifespan,
        redirect_slashes=False,
        responses={
            "4XX": {"model": errors.ErrorBody, "description": "The request is at fault."},
            "5XX": {"model": errors.ErrorBody, "description": "The server is at fault."},
        },
    )
    app.state.gateway = gateway
    errors.install(app)
    app.add_middleware(BodyLimit, max_bytes=settings.max_body_bytes)
    # Added last, so outermost.
    app.add_middleware(Observe, metrics=gateway.metrics)
    for part in (generations, jobs, images, models, health, home):
        app.include_router(part.router)
    # Without a 4XX of its own it would get FastAPI's, of which nothing here makes use.
    app.webhooks.post(
        "image.generation",
        status_code=204,
        response_description="Received; any 2xx will do.",
        responses={"4XX": {"description": "Tried again later; after 410 never."}},
    )(image_generation_ended)
    return app
