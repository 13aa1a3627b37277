"""The bodies of successful responses: OpenAI's fields and ours."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from koala.lora import LoraUse
from koala.spec import JobError, OutputFormat, Progress, Quality, ResponseFormat


def _is_none(value: Any) -> bool:
    return value is None


# Left out of the JSON when there is nothing to say, as OpenAI does.
OptionalText = Annotated[str | None, Field(exclude_if=_is_none)]


class Image(BaseModel):
    """One image, as a URL or as base64, and the seed that draws it alone."""

    url: OptionalText = None
    b64_json: OptionalText = None
    seed: int


class InputTokensDetails(BaseModel):
    """The tokens of the input by kind."""

    text_tokens: int
    image_tokens: int = 0


class TokenUsage(BaseModel):
    """Tokens as CLIP counts them; images count none."""

    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int = 0
    total_tokens: int


class Timings(BaseModel):
    """Where the time went, in seconds. The last two are parts of ``run_seconds``."""

    queued_seconds: float
    run_seconds: float
    total_seconds: float
    denoise_seconds: float
    decode_and_store_seconds: float


class ImagesResponse(BaseModel):
    """The finished images."""

    created: int
    data: list[Image]
    background: Literal["opaque"] = "opaque"
    output_format: OutputFormat
    quality: Quality
    size: str
    safety_identifier: OptionalText = None
    usage: TokenUsage
    id: str = Field(description="The job; see `GET /v1/jobs/{id}`.")
    model: str
    seed: int = Field(description="Seed of the first image.")
    num_inference_steps: int
    guidance_scale: float
    scheduler: str | None = Field(description="Null: the model's own.")
    lora: tuple[LoraUse, ...] = Field(description="What was added to the model.")
    timings: Timings
    warnings: list[str]


class Job(BaseModel):
    """A job as it stands. Times are whole seconds since 1970."""

    id: str
    object: Literal["image.generation.job"] = "image.generation.job"
    status: Literal["queued", "in_progress", "completed", "failed", "cancelled"]
    position: int | None = Field(description="Jobs ahead in the queue, while queued.")
    progress: Progress
    eta_seconds: float | None = Field(description="Seconds until the end; null: unknown.")
    created_at: int
    started_at: int | None
    completed_at: int | None = Field(description="When it ended, whichever way.")
    expires_at: int | None = Field(description="When the job and its result are forgotten.")
    model: str
    prompt: str
    negative_prompt: str | None
    n: int
    size: str
    quality: Quality
    seed: int
    num_inference_steps: int
    guidance_scale: float
    scheduler: str | None = Field(description="Null: the model's own.")
    lora: tuple[LoraUse, ...] = Field(description="What was added to the model.")
    output_format: OutputFormat
    output_compression: int
    response_format: ResponseFormat
    safety_identifier: OptionalText = None
    attempts: int = Field(description="Runs that ended with the death of their worker.")
    error: JobError | None = Field(
        description="Why there are no images; of a completed job: why there are none any more."
    )
    result: ImagesResponse | None


class JobReference(BaseModel):
    """A job that cannot be shown, and why: another version left it, or it is damaged."""

    id: str
    reason: str


Unreadable = Annotated[
    list[JobReference],
    Field(description="Jobs that belong here and cannot be read; they count for `limit`."),
]


class JobList(BaseModel):
    """A page of jobs, newest first; ``last_id`` as ``after`` gives the next one."""

    object: Literal["list"] = "list"
    data: list[Job]
    unreadable: Unreadable = []
    first_id: str | None
    last_id: str | None
    has_more: bool


class Capabilities(BaseModel):
    """What a request to the model may ask for, and what it gets by default."""

    default_size: str
    side_multiple: int
    min_side: int
    max_side: int
    max_pixels: int
    default_steps: int
    max_steps: int
    quality_steps: dict[Quality, int]
    default_guidance_scale: float
    max_guidance_scale: float
    schedulers: list[str]
    loras: list[str] = Field(description="What requests may name in `lora`.")
    max_images: int = 10
    output_formats: list[OutputFormat] = ["png", "jpeg", "webp"]
    max_prompt_chars: int


class Model(BaseModel):
    """A model that is served here."""

    id: str
    object: Literal["model"] = "model"
    created: int = Field(description="When this gateway began to serve it.")
    owned_by: str
    description: str
    license: str | None = Field(description="In words; null where it is not known here.")
    ready: bool = Field(description="Whether a live worker serves it.")
    capabilities: Capabilities


class ModelList(BaseModel):
    """All models that are served here."""

    object: Literal["list"] = "list"
    data: list[Model]
