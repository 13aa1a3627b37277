"""Where things stand: what a forecast starts from."""

from dataclasses import dataclass, replace

from koala.spec import JobSpec
from service.forecast.pace import Pace, Size


@dataclass(frozen=True, slots=True)
class Work:
    """What is left to draw of a job.

    Args:
        job_id: The job.
        size: Width and height of its images in pixels.
        rows: Rows that one image takes in a U-Net call.
        images: Number of its images.
        calls: U-Net calls left for each image, on average.
        age: Seconds since that was so.
    """

    job_id: str
    size: Size
    rows: int
    images: int
    calls: float
    age: float = 0.0

    @classmethod
    def of(cls, job_id: str, spec: JobSpec) -> "Work":
        """All of a job."""
        return cls(
            job_id=job_id,
            size=(spec.width, spec.height),
            rows=2 if spec.guidance_scale > 1 else 1,
            images=spec.n,
            calls=spec.unet_calls,
        )

    def after(self, share: float, age: float) -> "Work":
        """What is left of it when a ``share`` of its steps is done, as of ``age`` seconds ago."""
        return replace(self, calls=self.calls * (1 - share), age=age)


@dataclass(frozen=True, slots=True)
class Lane:
    """A live worker: how fast it is, and what it holds, in the order in which it came."""

    name: str
    pace: Pace
    held: tuple[Work, ...] = ()


@dataclass(frozen=True, slots=True)
class Situation:
    """Where things stand.

    Args:
        lanes: The live workers whose pace is known.
        queue: What waits, the next one first.
        arrivals_per_second: How many jobs came lately; a forecast takes it that they go on coming.
        arrivals: What these looked like.
    """

    lanes: tuple[Lane, ...]
    queue: tuple[Work, ...] = ()
    arrivals_per_second: float = 0.0
    arrivals: tuple[Work, ...] = ()
