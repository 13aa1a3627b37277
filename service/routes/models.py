"""``/v1/models``: what is served here."""

import time
from typing import Annotated

import redis
from anyio import to_thread
from fastapi import APIRouter, Path
from starlette.responses import Response

from koala.errors import ModelNotFound
from koala.schedulers import SCHEDULERS
from service.auth import AUTH_RESPONSES, KeyedRoute, ReaderDep
from service.errors import ErrorBody
from service.gateway import Gateway, GatewayDep
from service.render import json_response
from service.responses import Capabilities, Model, ModelList

router = APIRouter(
    prefix="/v1/models", tags=["models"], route_class=KeyedRoute, responses=AUTH_RESPONSES
)

# Only shown.
_STARTED = int(time.time())  # noqa: TID251


@router.get("", response_model=ModelList)
async def list_models(gateway: GatewayDep, _: ReaderDep) -> Response:
    """The models that are served here."""
    return json_response(ModelList(data=[await _model(gateway)]))


# Hub ids have a slash.
@router.get(
    "/{id:path}",
    response_model=Model,
    responses={
        404: {"model": ErrorBody, "description": "The model is not served here."},
    },
)
async def get_model(
    gateway: GatewayDep,
    _: ReaderDep,
    model_id: Annotated[str, Path(alias="id", description="The model.")],
) -> Response:
    """One model."""
    if model_id not in (gateway.card.id, gateway.card.source, gateway.settings.model):
        raise ModelNotFound(
            f"The model {model_id[:80]!r} is not served here; {gateway.card.id!r} is.", param="id"
        )
    return json_response(await _model(gateway))


async def _model(gateway: Gateway) -> Model:
    card = gateway.card
    try:
        ready = await gateway.fleet.serves(card.id)
    except redis.RedisError:
        # What the model can do is known without the queue, and without it no worker serves.
        ready = False
    return Model(
        id=card.id,
        created=_STARTED,
        owned_by=card.owned_by,
        description=card.description,
        license=card.license,
        ready=ready,
        capabilities=Capabilities(
            default_size=f"{card.native_side}x{card.native_side}",
            side_multiple=card.side_multiple,
            min_side=card.min_side,
            max_side=card.max_side,
            max_pixels=card.max_pixels,
            default_steps=card.steps,
            max_steps=card.max_steps,
            quality_steps=card.quality_steps,
            default_guidance_scale=card.guidance_scale,
            max_guidance_scale=card.max_guidance_scale,
            schedulers=list(SCHEDULERS),
            loras=await to_thread.run_sync(gateway.loras.names),
            max_prompt_chars=gateway.settings.max_prompt_chars,
        ),
    )
