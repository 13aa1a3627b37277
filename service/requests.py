"""The body of a generation request: OpenAI's fields and ours.

Here is what can be said of a field alone; what depends on the model or on other fields is in
``service.planning``. ``null`` stands for the default in all fields but ``prompt``.
"""

import re
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
)
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from koala.lora import MAX_LORA_WEIGHT, MAX_LORAS
from koala.schedulers import SCHEDULERS, canonical_name
from koala.spec import MAX_PREVIEWS, MAX_SEED, Moderation, OutputFormat, Priority, ResponseFormat

RequestQuality = Literal["low", "medium", "high", "xhigh", "max", "auto", "standard", "hd"]

MAX_DEADLINE_SECONDS: Final = 86_400

# What no text may contain, as part of a regular expression.
CONTROL: Final = r"\x00-\x08\x0b\x0c\x0e-\x1f"
_CONTROL: Final = re.compile(f"[{CONTROL}]")


@dataclass(frozen=True, slots=True)
class Must:
    """Annotation that tells, in one sentence for all ways to be wrong, what a value must be."""

    be: str

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        """Wrap the annotated type's schema so that its error is ours."""
        return core_schema.custom_error_schema(
            handler(source),
            custom_error_type="invalid_value",
            custom_error_message=f"must be {self.be}",
        )


def _plain_text(value: str) -> str:
    # JSON can carry both; neither Redis, a tokenizer nor an image's metadata can.
    try:
        value.encode()
    except UnicodeEncodeError:
        raise PydanticCustomError("invalid_value", "must not have lone surrogates") from None
    if _CONTROL.search(value):
        raise PydanticCustomError(
            "invalid_value", "must not have control characters other than tab and line ends"
        )
    return value


def _scheduler_name(value: str) -> str:
    try:
        return canonical_name(value)
    except ValueError as error:
        raise PydanticCustomError("invalid_value", "{reason}", {"reason": str(error)}) from None


def _whole(value: Any) -> Any:
    # JSON has one kind of number, and to its readers 2.0 is the integer 2.
    return int(value) if isinstance(value, float) and value.is_integer() else value


WHOLE: Final = BeforeValidator(_whole)
Text = Annotated[str, AfterValidator(_plain_text)]
ShortText = Annotated[Text, Field(max_length=512)]
SchedulerText = Annotated[str, AfterValidator(_scheduler_name)]


class LoraRequest(BaseModel):
    """One LoRA and how much of it."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    name: Annotated[ShortText, Field(description="Its name; see `GET /v1/models`.")]
    weight: Annotated[
        float | None,
        Field(
            ge=-MAX_LORA_WEIGHT,
            le=MAX_LORA_WEIGHT,
            allow_inf_nan=False,
            description="How strongly it works; null: 1, what it was trained for.",
        ),
        Must(f"a number from {-MAX_LORA_WEIGHT:g} to {MAX_LORA_WEIGHT:g}"),
    ] = None


class GenerationRequest(BaseModel):
    """What to draw. Unknown fields are refused, and so is a value that cannot be honoured."""

    model_config = ConfigDict(
        strict=True,
        extra="forbid",
        frozen=True,
        json_schema_extra={
            "examples": [{"prompt": "a koala on a blue background", "n": 2, "seed": 7}]
        },
    )

    prompt: Annotated[Text, Field(description="What the image shows.")]
    model: Annotated[
        ShortText | None, Field(description="The served model; see `GET /v1/models`.")
    ] = None
    n: Annotated[
        int | None,
        Field(ge=1, le=10, description="Number of images; null: 1."),
        WHOLE,
        Must("a whole number from 1 to 10"),
    ] = None
    size: Annotated[
        str | None,
        Field(
            pattern=r"^(auto|[0-9]{1,5}x[0-9]{1,5})$",
            description='"WIDTHxHEIGHT" in pixels, or "auto" for the model\'s native size.',
        ),
        Must('"auto" or "WIDTHxHEIGHT" in pixels, such as "1024x768"'),
    ] = None
    quality: Annotated[
        RequestQuality | None,
        Field(description="Stands for a number of steps of the model; auto and standard: medium."),
    ] = None
    response_format: Annotated[
        ResponseFormat | None, Field(description="How to return images; null: url.")
    ] = None
    output_format: Annotated[
        OutputFormat | None, Field(description="The images' file format; null: png.")
    ] = None
    output_compression: Annotated[
        int | None,
        Field(ge=0, le=100, description="Quality of jpeg and webp in percent; null: 100."),
        WHOLE,
        Must("a whole number from 0 to 100"),
    ] = None
    background: Annotated[
        Literal["transparent", "opaque", "auto"] | None,
        Field(description="Images are opaque; transparent is refused."),
    ] = None
    moderation: Annotated[
        Moderation | None,
        Field(description="How strict the safety check is, where there is one; null: auto."),
    ] = None
    stream: Annotated[
        bool | None,
        Field(description="Server-Sent Events: partial images, then the finished ones."),
        Must("true or false"),
    ] = None
    partial_images: Annotated[
        int | None,
        Field(ge=0, le=3, description="Partial images of a stream; null: 0."),
        WHOLE,
        Must("a whole number from 0 to 3"),
    ] = None
    style: Annotated[ShortText | None, Field(description="Not supported: refused unless null.")] = (
        None
    )
    user: Annotated[
        ShortText | None, Field(description="Deprecated name of `safety_identifier`.")
    ] = None
    safety_identifier: Annotated[
        ShortText | None, Field(description="Your user's identifier; echoed.")
    ] = None
    negative_prompt: Annotated[
        Text | None, Field(description="What the image should not show.")
    ] = None
    seed: Annotated[
        int | None,
        Field(
            ge=0,
            le=MAX_SEED,
            description="Seed of the first image, image i has seed + i; null: random.",
        ),
        WHOLE,
        Must(f"a whole number from 0 to {MAX_SEED}"),
    ] = None
    num_inference_steps: Annotated[
        int | None,
        Field(description="Denoising steps, instead of `quality`; null: the model's default."),
        WHOLE,
        Must("a whole number"),
    ] = None
    guidance_scale: Annotated[
        float | None,
        Field(allow_inf_nan=False, description="Guidance; null: the model's default."),
        Must("a finite number"),
    ] = None
    scheduler: Annotated[
        SchedulerText | None,
        Field(
            description=f"How noise becomes an image: {', '.join(SCHEDULERS)}; what diffusers, "
            "AUTOMATIC1111 and ComfyUI call these works too. Null: the model's own."
        ),
    ] = None
    lora: Annotated[
        list[LoraRequest] | None,
        Field(
            max_length=MAX_LORAS,
            description="What to add to the model for this request; null: nothing.",
        ),
    ] = None
    previews: Annotated[
        int | None,
        Field(
            ge=0,
            le=MAX_PREVIEWS,
            description="Small images on the way, for `GET /v1/jobs/{id}/events`; null: 0.",
        ),
        WHOLE,
        Must(f"a whole number from 0 to {MAX_PREVIEWS}"),
    ] = None
    priority: Annotated[
        Priority | None,
        Field(description="Whose turn it is among the waiting; null: normal."),
    ] = None
    deadline_seconds: Annotated[
        float | None,
        Field(
            gt=0,
            le=MAX_DEADLINE_SECONDS,
            allow_inf_nan=False,
            description="The job fails unless it is done in so many seconds; null: no deadline.",
        ),
        Must(f"a number of seconds above 0 and up to {MAX_DEADLINE_SECONDS}"),
    ] = None
    webhook_url: Annotated[
        ShortText | None,
        Field(
            description="Gets a POST when the job has ended, signed as Standard Webhooks has it; "
            "null: none."
        ),
    ] = None
