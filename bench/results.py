"""What a run leaves behind: every figure of the report comes from this file."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

from bench.contenders import Contender
from bench.workloads import Workload


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class CurvePoint(_Frozen):
    """What a row of a U-Net call, and an image of a decoder call, take in a batch of ``batch``."""

    batch: int
    unet_row_ms: float
    decode_image_ms: float


class RawRun(_Frozen):
    """One pass of the raw loop over the U-Net rows and decodes that ``images`` images need."""

    workload: Workload
    round: int
    seconds: float
    images: int
    unet_rows: int

    @property
    def images_per_second(self) -> float:
        """Images per second."""
        return self.images / self.seconds

    @property
    def unet_rows_per_second(self) -> float:
        """U-Net rows per second, decoding included in the time."""
        return self.unet_rows / self.seconds


class Run(_Frozen):
    """One contender under one load in one round. Times are in seconds.

    ``latencies`` are of the images that came back; those of requests unfinished when patience
    ended are in ``unfinished``, as the time they had waited by then. ``generator_cpu`` is the
    share of one core that the load generator took, which the contender did not have.
    """

    contender: Contender
    workload: Workload
    load: Literal["closed", "poisson"]
    clients: int | None = None
    rate: float | None = None
    round: int
    seconds: float
    images: int
    images_per_second: float
    unet_rows_per_second: float
    p50: float | None
    p95: float | None
    queue_wait_p50: float | None
    queue_wait_p95: float | None
    errors: dict[str, int]
    latencies: list[float]
    unfinished: list[float] = []
    generator_cpu: float


class IdleRun(_Frozen):
    """Single requests to an idle contender, in seconds each."""

    contender: Contender
    round: int
    latencies: list[float]


class Results(_Frozen):
    """A whole run."""

    created: str
    version: str
    machine: dict[str, str]
    torch_threads: int
    batch_rows: int | None
    rounds: int
    curve: list[CurvePoint] = []
    raw: list[RawRun] = []
    runs: list[Run] = []
    idle: list[IdleRun] = []
