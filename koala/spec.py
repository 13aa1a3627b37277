"""What travels through the queue: a job's spec on the way in, its result on the way out."""

import hashlib
import secrets
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from koala.lora import MAX_LORAS, LoraUse
from koala.schedulers import SCHEDULERS, SchedulerName

OutputFormat = Literal["png", "jpeg", "webp"]
ResponseFormat = Literal["url", "b64_json"]
Quality = Literal["low", "medium", "high", "xhigh", "max"]
Priority = Literal["high", "normal", "low"]
Moderation = Literal["auto", "low"]

# Most previews of an image: nobody sees more, and each is a message.
MAX_PREVIEWS: Final = 20

# The largest integer that JSON readers with double precision keep exact.
MAX_SEED: Final = 2**53 - 1


_OWNER_DIGITS: Final = 8


def new_images_id(owner: str = "") -> str:
    """A name for a job's images that nobody can guess and that tells whose they are.

    32 hexadecimal digits: the first 8 are of the owner's digest, the others (96 bits) are random.
    """
    return _owner_digits(owner) + secrets.token_hex(12)


def image_name(images_id: str, index: int, output_format: OutputFormat) -> str:
    """The name of image ``index`` (from 0) of a job in the image store."""
    return f"{images_id}-{index}.{output_format}"


def images_id(name: str) -> str:
    """What all names of a job's images begin with, from one of them."""
    return name.partition("-")[0]


def is_owners_image(name: str, owner: str) -> bool:
    """Whether the image ``name`` belongs to a job of ``owner``."""
    return name.startswith(_owner_digits(owner))


def _owner_digits(owner: str) -> str:
    return hashlib.sha256(owner.encode()).hexdigest()[:_OWNER_DIGITS]


class _Frozen(BaseModel):
    # What is stored may be of a newer version: who only shows it passes over what it has more.
    model_config = ConfigDict(frozen=True, extra="ignore")


class JobSpec(_Frozen):
    """One request as the worker runs it: every default filled in, every value checked.

    Image ``i`` of ``n`` is drawn with seed ``seed + i``, so that any of them can be had again
    alone. ``width`` and ``height`` are pixels. A ``scheduler`` of ``None`` is the model's own: the
    worker knows it. ``images_id`` cannot be guessed (:func:`new_images_id`) and is fixed per
    job, so that a second run overwrites the first one's files. ``owner`` is the name of the API key
    that the request came with, empty where there are no keys. After ``deadline`` (Redis' time in
    seconds) nobody wants the images any more. ``previews`` are shown of each image on its way.
    ``lora`` is added to the model for these images only. ``moderation`` is how strict the safety
    check is, where there is one.
    ``webhook_url`` hears of the job's end, with image URLs that begin with ``base_url``, which is
    empty without a webhook.
    """

    prompt: str
    negative_prompt: str | None = None
    model: str
    width: int
    height: int
    n: int = Field(ge=1, le=10)
    num_inference_steps: int = Field(ge=1)
    guidance_scale: float = Field(ge=0)
    seed: int = Field(ge=0, le=MAX_SEED)
    scheduler: SchedulerName | None = None
    output_format: OutputFormat = "png"
    output_compression: int = Field(100, ge=0, le=100)
    quality: Quality = "medium"
    response_format: ResponseFormat = "url"
    user: str | None = None
    previews: int = Field(0, ge=0, le=MAX_PREVIEWS)
    lora: tuple[LoraUse, ...] = Field((), max_length=MAX_LORAS)
    moderation: Moderation = "auto"
    owner: str = ""
    priority: Priority = "normal"
    deadline: float | None = Field(None, ge=0)
    webhook_url: str | None = None
    base_url: str = ""
    images_id: str = Field(default_factory=new_images_id, pattern=r"^[0-9a-f]{32}$")

    def image_name(self, index: int) -> str:
        """The name of image ``index`` (from 0) in the image store."""
        return image_name(self.images_id, index, self.output_format)

    def image_seed(self, index: int) -> int:
        """The seed of image ``index`` (from 0)."""
        return self.seed + index

    @property
    def preview_steps(self) -> tuple[int, ...]:
        """After which steps, counted from 1, previews are shown: evenly spread before the end."""
        steps = self.num_inference_steps
        spread = (round(steps * (i + 1) / (self.previews + 1)) for i in range(self.previews))
        return tuple(sorted({step for step in spread if 0 < step < steps}))

    @property
    def unet_calls(self) -> int:
        """U-Net calls of each image: some schedulers make two in a step."""
        per_step = 1 if self.scheduler is None else SCHEDULERS[self.scheduler].calls_per_step
        return self.num_inference_steps * per_step

    @property
    def total_steps(self) -> int:
        """Denoising steps over all images of the job."""
        return self.n * self.num_inference_steps


def unknown_fields(stored: object, known: BaseModel) -> list[str]:
    """Names of the fields in ``stored``, which was read as ``known``, that this version lacks.

    A field of a newer version changes what is to be drawn: who draws has to know it.
    """
    found: list[str] = []
    if not isinstance(stored, Mapping):
        return found
    for name, value in stored.items():
        if name not in type(known).model_fields:
            found.append(str(name))
            continue
        part = getattr(known, name)
        if isinstance(part, BaseModel):
            found += [f"{name}.{inner}" for inner in unknown_fields(value, part)]
        elif isinstance(part, tuple) and isinstance(value, Sequence):
            for i, (each, model) in enumerate(zip(value, part, strict=True)):
                if isinstance(model, BaseModel):
                    found += [f"{name}.{i}.{inner}" for inner in unknown_fields(each, model)]
    return found


class ImageRef(_Frozen):
    """One stored image."""

    name: str
    seed: int
    size_bytes: int


class Usage(_Frozen):
    """Tokens as CLIP counts them, begin and end marks left out; images count no tokens."""

    text_tokens: int


class JobResult(_Frozen):
    """What a worker leaves when a job is done. Times are in seconds."""

    images: list[ImageRef]
    usage: Usage
    denoise_seconds: float
    decode_and_store_seconds: float
    warnings: list[str] = []


class JobError(_Frozen):
    """Why a job failed: a sentence for people and a code for programs."""

    message: str
    code: str = "generation_failed"


class Progress(_Frozen):
    """Denoising steps done, and in all, over all images of the job."""

    step: int
    steps: int

    @classmethod
    def told(cls, step: Mapping[str, Any]) -> "Progress":
        """As the data of a job's event ``step`` tells it, which may tell more."""
        return cls(step=step["step"], steps=step["steps"])


class JobRecord(_Frozen):
    """A job as it stands in Redis right now. Times are Redis', as aware datetimes."""

    id: str
    state: Literal["queued", "in_progress", "completed", "failed", "cancelled"]
    spec: JobSpec
    created_at: datetime
    started_at: datetime | None = None
    ended_at: datetime | None = None
    expires_at: datetime | None = None
    position: int | None = Field(None, description="Jobs ahead in the queue, while queued.")
    progress: Progress
    attempts: int = Field(0, description="Runs that ended with the worker's death.")
    worker: str | None = None
    result: JobResult | None = None
    error: JobError | None = None
