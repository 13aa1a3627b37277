"""The bodies of the operator's view."""

from typing import Literal

from pydantic import BaseModel, Field

from koala.spec import Priority, Progress
from koala.workers import Vram
from service.responses import Unreadable


class AdminSummary(BaseModel):
    """How the whole service stands. Rates are images per second."""

    queued: int = Field(description="Jobs that wait.")
    oldest_queued_seconds: float | None = Field(
        description="For how long the oldest of them has waited; null: none does."
    )
    in_flight: int = Field(description="Jobs that workers hold.")
    workers: int = Field(description="Live workers.")
    images_last_minute: int = Field(description="Images stored in the last minute.")
    images_per_second: float | None = Field(
        description="What all workers draw while they are busy; null: not known yet."
    )


class AdminSize(BaseModel):
    """What a worker measured at one size of image."""

    size: str
    max_rows: int = Field(description="Most rows of a U-Net call; a guided image takes two.")
    step_seconds: dict[int, float] = Field(description="Seconds of a U-Net call by its rows.")
    decode_seconds: float | None = Field(description="Seconds of decoding one image.")
    slowness: float = Field(description="The same for this size alone.")


class AdminWorker(BaseModel):
    """A live worker, by its own account, which is a heartbeat old at the most."""

    name: str
    model: str
    device: str
    dtype: str
    version: str
    started_at: int = Field(description="Seconds since 1970.")
    jobs_in_flight: int
    rows: int = Field(description="Rows of the U-Net batch right now.")
    max_rows: int = Field(description="Most rows at the model's native size.")
    images_total: int
    images_last_minute: int
    images_per_second: float | None = Field(description="While it is busy; null: not known yet.")
    seconds_per_step: float | None
    slowness: float = Field(description="Its loop under load, as a multiple of the measured calls.")
    vram: Vram | None = Field(description="Null: it does not draw on a GPU.")
    metrics_url: str | None
    trouble: str | None = Field(description="Why it claims no jobs; null: it does.")
    sizes: list[AdminSize]


class AdminWorkerList(BaseModel):
    """All live workers, by name."""

    object: Literal["list"] = "list"
    data: list[AdminWorker]
    unreadable: list[str] = Field(
        [], description="Names of live workers whose account cannot be read: of other versions."
    )


class AdminJob(BaseModel):
    """An unfinished job of whichever owner. Times are whole seconds since 1970."""

    id: str
    status: Literal["queued", "in_progress"]
    position: int | None = Field(description="Jobs ahead in the queue, while queued.")
    owner: str | None = Field(description="Name of the API key; null: it came without one.")
    priority: Priority
    prompt: str
    n: int
    size: str
    num_inference_steps: int
    guidance_scale: float
    scheduler: str | None = Field(description="Null: the model's own.")
    progress: Progress
    eta_seconds: float | None = Field(description="Seconds until the end; null: unknown.")
    created_at: int
    age_seconds: float = Field(description="Seconds since it was submitted.")
    started_at: int | None
    worker: str | None
    attempts: int = Field(description="Runs that ended with the death of their worker.")


class AdminJobList(BaseModel):
    """Jobs in the order of the queue, or in which workers took them."""

    object: Literal["list"] = "list"
    data: list[AdminJob]
    unreadable: Unreadable = []
    has_more: bool
