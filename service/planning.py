"""From a request to a job: defaults filled in, and all checked that depends on the model."""

import secrets
from typing import Final

from koala.catalogue import ModelCard
from koala.errors import InvalidRequest, LoraUnusable, ModelNotFound
from koala.lora import LoraError, LoraFolder, LoraUse, UnknownLora
from koala.schedulers import SCHEDULERS
from koala.settings import Settings
from koala.spec import MAX_SEED, JobSpec, Quality, new_images_id
from service.requests import GenerationRequest, LoraRequest, RequestQuality
from service.webhooks.target import check_webhook_url

_QUALITY: Final[dict[RequestQuality, Quality]] = {
    "low": "low",
    "medium": "medium",
    "high": "high",
    "xhigh": "xhigh",
    "max": "max",
    "auto": "medium",
    "standard": "medium",
    "hd": "high",
}


def plan(
    request: GenerationRequest,
    card: ModelCard,
    settings: Settings,
    loras: LoraFolder,
    owner: str = "",
    base_url: str = "",
) -> JobSpec:
    """The job that honours ``request``, which came with the API key called ``owner``.

    A webhook's image URLs begin with ``base_url``. What depends on the time is not in it yet: its
    ``deadline``. Where the request names LoRAs, their files are looked at, so that asyncio's
    callers use a thread.

    Raises:
        ModelNotFound: The request names a model other than ``card``.
        InvalidRequest: A field cannot be honoured; ``param`` names it.
        LoraUnusable: The file of a LoRA is none.
    """
    _check_model(request.model, card, settings)
    _refuse_unsupported(request)
    _check_text("prompt", request.prompt, settings.max_prompt_chars)
    if not request.prompt.strip():
        raise InvalidRequest("`prompt` must not be empty.", param="prompt")
    if request.negative_prompt is not None:
        _check_text("negative_prompt", request.negative_prompt, settings.max_prompt_chars)
    guidance_scale = _guidance(request.guidance_scale, card)
    if request.negative_prompt and guidance_scale <= 1:
        raise InvalidRequest(
            f"`negative_prompt` needs a `guidance_scale` above 1, not {guidance_scale:g}: guidance "
            "is what it works by.",
            param="negative_prompt",
        )
    width, height = _size(request.size, card)
    quality, steps = _quality_and_steps(request, card)
    _check_scheduler(request.scheduler, steps)
    webhook_url = request.webhook_url
    if webhook_url is not None:
        check_webhook_url(webhook_url, settings)
    n = request.n or 1
    return JobSpec(
        prompt=request.prompt,
        negative_prompt=request.negative_prompt,
        model=card.id,
        width=width,
        height=height,
        n=n,
        num_inference_steps=steps,
        guidance_scale=guidance_scale,
        seed=_seed(request.seed, n),
        scheduler=request.scheduler,
        lora=_lora(request.lora or [], loras),
        moderation=request.moderation or "auto",
        output_format=request.output_format or "png",
        output_compression=_compression(request),
        quality=quality,
        response_format=request.response_format or "url",
        user=request.safety_identifier or request.user or None,
        previews=(request.partial_images if request.stream else request.previews) or 0,
        owner=owner,
        images_id=new_images_id(owner),
        priority=request.priority or "normal",
        webhook_url=webhook_url,
        base_url="" if webhook_url is None else base_url,
    )


def _check_model(model: str | None, card: ModelCard, settings: Settings) -> None:
    if model is not None and model not in (card.id, card.source, settings.model):
        raise ModelNotFound(
            f"The model {model[:80]!r} is not served here; {card.id!r} is.", param="model"
        )


def _refuse_unsupported(request: GenerationRequest) -> None:
    if request.partial_images and not request.stream:
        raise InvalidRequest(
            "`partial_images` belongs to streaming: set `stream` to true, or ask for `previews` "
            "and watch the job's events.",
            param="partial_images",
        )
    if request.previews and request.stream:
        raise InvalidRequest(
            "`previews` are for a job's events; a stream has `partial_images`.", param="previews"
        )
    if request.style is not None:
        raise InvalidRequest(
            "`style` is not supported: leave it out and describe the style in the prompt.",
            param="style",
        )
    if request.background == "transparent":
        raise InvalidRequest(
            "`background` can only be opaque or auto: this model draws no transparency.",
            param="background",
        )


def _check_text(field: str, text: str, longest: int) -> None:
    if len(text) > longest:
        raise InvalidRequest(
            f"`{field}` has {len(text)} characters; at most {longest} are allowed.", param=field
        )


def _size(size: str | None, card: ModelCard) -> tuple[int, int]:
    if size is None or size == "auto":
        return card.native_side, card.native_side
    width, height = (int(side) for side in size.split("x"))
    reason = card.size_error(width, height)
    if reason is not None:
        raise InvalidRequest(
            f"`size` {size} does not work with {card.id}: {reason}. Its sides are multiples of "
            f"{card.side_multiple} from {card.min_side} to {card.max_side}, with at most "
            f"{card.max_pixels} pixels in all; it is best at "
            f"{card.native_side}x{card.native_side}.",
            param="size",
        )
    return width, height


def _quality_and_steps(request: GenerationRequest, card: ModelCard) -> tuple[Quality, int]:
    steps = request.num_inference_steps
    wanted = request.quality or "auto"
    if steps is None:
        quality = _QUALITY[wanted]
        return quality, card.steps if wanted == "auto" else card.quality_steps[quality]
    if wanted != "auto":
        raise InvalidRequest(
            "`quality` and `num_inference_steps` both set the number of steps: give one of them.",
            param="quality",
        )
    if not 1 <= steps <= card.max_steps:
        raise InvalidRequest(
            f"`num_inference_steps` must be a whole number from 1 to {card.max_steps}.",
            param="num_inference_steps",
        )
    nearest = min(card.quality_steps, key=lambda name: abs(card.quality_steps[name] - steps))
    return nearest, steps


def _check_scheduler(scheduler: str | None, steps: int) -> None:
    reason = None if scheduler is None else SCHEDULERS[scheduler].steps_error(steps)
    if reason is not None:
        raise InvalidRequest(
            f"`scheduler` {reason}: ask for fewer by `num_inference_steps` or `quality`.",
            param="scheduler",
        )


def _lora(wanted: list[LoraRequest], loras: LoraFolder) -> tuple[LoraUse, ...]:
    if wanted and not loras.is_configured:
        raise InvalidRequest("`lora` is not possible here: this server has no LoRAs.", param="lora")
    for i, each in enumerate(wanted):
        try:
            loras.check(each.name)
        except UnknownLora as error:
            raise InvalidRequest(
                f"`lora.{i}.name`: {error}. `GET /v1/models` lists all.", param=f"lora.{i}.name"
            ) from None
        except LoraError as error:
            raise LoraUnusable(f"`lora.{i}.name`: {error}.", param=f"lora.{i}.name") from None
    return tuple(
        LoraUse(name=each.name, weight=1.0 if each.weight is None else each.weight)
        for each in wanted
    )


def _guidance(scale: float | None, card: ModelCard) -> float:
    if scale is None:
        return card.guidance_scale
    if not 0 <= scale <= card.max_guidance_scale:
        raise InvalidRequest(
            f"`guidance_scale` must be a number from 0 to {card.max_guidance_scale:g}.",
            param="guidance_scale",
        )
    return scale


def _seed(seed: int | None, n: int) -> int:
    highest = MAX_SEED - (n - 1)
    if seed is None:
        # Short enough to be read out and typed again.
        return secrets.randbelow(2**32)
    if seed > highest:
        raise InvalidRequest(
            f"`seed` must be at most {highest} for {n} images: image i is drawn with seed + i.",
            param="seed",
        )
    return seed


def _compression(request: GenerationRequest) -> int:
    compression = 100 if request.output_compression is None else request.output_compression
    if compression != 100 and request.output_format in (None, "png"):
        raise InvalidRequest(
            "`output_compression` works with the output formats jpeg and webp; png loses nothing "
            "and takes only 100.",
            param="output_compression",
        )
    return compression
