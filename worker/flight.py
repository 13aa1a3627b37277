"""A job in flight: what the loop knows of it between claim and end."""

import time
from dataclasses import dataclass, field
from typing import Final

from rq.executions import Execution
from rq.job import JobStatus

from koala.events import EventType, JobEvent
from koala.lora import LoraError
from koala.spec import ImageRef, JobError, JobResult, JobSpec, Usage
from koala.trail import Trail
from worker.engine import DoesNotFit, SampleRequest
from worker.fencing import FencedJob

_ALL_WITHHELD: Final = (
    "What was drawn is withheld: the safety check refused it. Another prompt or seed may pass."
)

# Characters of a reason for people.
_LONGEST_REASON: Final = 2000


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a job ends: RQ's status for it, the event that tells of it, and the result or reason."""

    status: JobStatus
    event: JobEvent
    result: JobResult | None = None
    reason: str = ""
    code: str = ""

    @classmethod
    def completed(cls, result: JobResult) -> "Outcome":
        """All images are stored."""
        event = JobEvent(EventType.COMPLETED, {"result": result.model_dump(mode="json")})
        return cls(JobStatus.FINISHED, event, result=result)

    @classmethod
    def failed(cls, code: str, message: str) -> "Outcome":
        """The job cannot be done; ``message`` is a sentence for people.

        It may quote what a file says, so anything: what Redis could not keep is escaped, and what
        no reader wants is cut.
        """
        message = message[:_LONGEST_REASON].encode(errors="backslashreplace").decode()
        error = JobError(message=message, code=code)
        event = JobEvent(EventType.FAILED, {"error": error.model_dump()})
        return cls(JobStatus.FAILED, event, reason=message, code=code)

    @classmethod
    def broken(cls, error: Exception) -> "Outcome":
        """An image cannot be drawn, for the reason that the engine gives."""
        match error:
            case DoesNotFit():
                code = "does_not_fit"
            case LoraError():
                code = "lora_unusable"
            case _:
                code = "generation_failed"
        return cls.failed(code, str(error) or type(error).__name__)

    @classmethod
    def stopped(cls) -> "Outcome":
        """Somebody asked for the job to be stopped."""
        event = JobEvent(EventType.CANCELLED, {})
        return cls(JobStatus.STOPPED, event, reason="The job was stopped on request.")


@dataclass(frozen=True, slots=True)
class ImageKey:
    """Names one image of one run of a job, so that events of an earlier run match nothing."""

    job_id: str
    run: str
    index: int


@dataclass(slots=True, eq=False)
class Flight:
    """A claimed job.

    ``outcome`` is set once the job's end is decided; until the end is written down, the lease is
    still kept. ``timeout`` is in seconds since the claim. ``in_engine`` holds the indexes of the
    images that the engine still draws, ``withheld`` of those that the safety check refused.
    ``truncated_tokens`` of ``text_tokens`` are beyond what the model reads. Of the times, which are
    ``time.monotonic()``'s, ``began_at`` is when its first step began; ``denoised_at`` and
    ``decoded_at`` are of the last of its images.
    """

    job: FencedJob
    execution: Execution
    spec: JobSpec
    timeout: float
    text_tokens: int
    warnings: list[str]
    truncated_tokens: int = 0
    admitted_at: float = field(default_factory=time.monotonic)
    began_at: float | None = None
    denoised_at: float | None = None
    decoded_at: float | None = None
    outcome: Outcome | None = None
    steps: list[int] = field(init=False)
    images: list[ImageRef | None] = field(init=False)
    withheld: set[int] = field(init=False)
    in_engine: set[int] = field(init=False)
    requests: list[SampleRequest] = field(init=False)

    def __post_init__(self) -> None:
        self.steps = [0] * self.spec.n
        self.images = [None] * self.spec.n
        self.withheld = set()
        self.in_engine = set()
        self.requests = [self._request(index) for index in range(self.spec.n)]

    @property
    def id(self) -> str:
        """The job's id."""
        return self.job.id

    @property
    def trail(self) -> Trail:
        """What ties the job to its request."""
        return Trail.of_meta(self.job.meta)

    @property
    def token(self) -> str:
        """What proves that the job is ours."""
        return self.execution.id

    def key(self, index: int) -> ImageKey:
        """The engine's name for image ``index``."""
        return ImageKey(self.id, self.token, index)

    @property
    def overtime(self) -> float:
        """Seconds since the job's time was up; negative before that."""
        return time.monotonic() - self.admitted_at - self.timeout

    def is_late(self, moment: float) -> bool:
        """Whether the job's deadline has passed at ``moment``, Redis' time."""
        deadline = self.spec.deadline
        return deadline is not None and moment > deadline

    @property
    def images_to_store(self) -> int:
        """Images neither stored nor withheld yet."""
        return self.images.count(None) - len(self.withheld)

    def advance(self, index: int, step: int, seconds: float) -> None:
        """Note that image ``index`` has done ``step`` steps, the last of them in ``seconds``."""
        self.steps[index] = step
        if self.began_at is None:
            self.began_at = time.monotonic() - seconds
        if self.denoised_at is None and min(self.steps) >= self.spec.num_inference_steps:
            self.denoised_at = time.monotonic()

    def decode(self) -> None:
        """Note that an image is drawn that ``in_engine`` no longer has."""
        if not self.in_engine:
            self.decoded_at = time.monotonic()

    def store(self, index: int, image: ImageRef) -> None:
        """Note that an image is stored; with the last one the outcome is there."""
        self.images[index] = image
        self._settle()

    def withhold(self, index: int) -> None:
        """Note that an image must not be shown; the job fails if that is all it has."""
        self.withheld.add(index)
        self._settle()

    def _settle(self) -> None:
        if self.images_to_store or self.outcome is not None:
            return
        stored = [ref for ref in self.images if ref is not None]
        if not stored:
            self.outcome = Outcome.failed("content_policy_violation", _ALL_WITHHELD)
            return
        missing = [
            f"The image with seed {self.spec.image_seed(index)} is withheld: the safety check "
            "refused it."
            for index in sorted(self.withheld)
        ]
        denoised_at = self.denoised_at or time.monotonic()
        self.outcome = Outcome.completed(
            JobResult(
                images=stored,
                usage=Usage(text_tokens=self.text_tokens),
                denoise_seconds=round(denoised_at - self.admitted_at, 4),
                decode_and_store_seconds=round(time.monotonic() - denoised_at, 4),
                warnings=self.warnings + missing,
            )
        )

    def _request(self, index: int) -> SampleRequest:
        return SampleRequest(
            key=self.key(index),
            prompt=self.spec.prompt,
            negative_prompt=self.spec.negative_prompt,
            width=self.spec.width,
            height=self.spec.height,
            num_inference_steps=self.spec.num_inference_steps,
            guidance_scale=self.spec.guidance_scale,
            seed=self.spec.image_seed(index),
            scheduler=self.spec.scheduler,
            preview_steps=frozenset(self.spec.preview_steps),
            lora=self.spec.lora,
        )
