"""Where things stand: what a forecast starts from."""

from collections.abc import Sequence
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
        calls: U-Net calls left for each of its images.
        age: Seconds since that was so.
    """

    job_id: str
    size: Size
    rows: int
    calls: tuple[float, ...]
    age: float = 0.0

    @classmethod
    def of(cls, job_id: str, spec: JobSpec) -> "Work":
        """All of a job."""
        return cls(
            job_id=job_id,
            size=(spec.width, spec.height),
            rows=2 if spec.guidance_scale > 1 else 1,
            calls=(spec.unet_calls,) * spec.n,
        )

    def after(self, shares: Sequence[float], age: float) -> "Work":
        """What is left when such shares of its images' steps are done, as of ``age`` seconds ago.

        An image that has done all its steps is left out, unless there are no others: then the job
        still has to end.
        """
        calls = (all_of_it * (1 - s) for all_of_it, s in zip(self.calls, shares, strict=True))
        return replace(self, calls=tuple(left for left in calls if left) or (0.0,), age=age)


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
        arrivals: What the latest jobs looked like.
        returning: Part of those who are served that asks for more at once.
        newcomers: Jobs in the queue that came since this was so: the first of those to come.
    """

    lanes: tuple[Lane, ...]
    queue: tuple[Work, ...] = ()
    arrivals_per_second: float = 0.0
    arrivals: tuple[Work, ...] = ()
    returning: float = 1.0
    newcomers: int = 0
