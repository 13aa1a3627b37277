"""What is asked for, and when."""

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from worker.batching import Size


@dataclass(frozen=True, slots=True)
class Shape:
    """What matters of a request: its size, steps and rows per image, and number of images."""

    size: Size
    steps: int
    rows: int
    n: int


@dataclass(frozen=True)
class Workload:
    """What requests look like; each is drawn independently of the others.

    Args:
        sizes: Sizes and their weights.
        steps: Fewest and most steps, all equally likely.
        guidance_scale: Lowest and highest guidance, all equally likely; above 1 an image takes two
            rows.
        n: Images of a request.

    Raises:
        ValueError: A range or a number is impossible.
    """

    sizes: Mapping[Size, float]
    steps: tuple[int, int] = (10, 10)
    guidance_scale: tuple[float, float] = (3.5, 3.5)
    n: int = 1

    def __post_init__(self) -> None:
        if not self.sizes or any(weight <= 0 for weight in self.sizes.values()):
            raise ValueError("sizes need weights above 0")
        if not 1 <= self.steps[0] <= self.steps[1]:
            raise ValueError("steps must be a range from at least 1 upwards")
        if not 0 <= self.guidance_scale[0] <= self.guidance_scale[1]:
            raise ValueError("guidance must be a range from at least 0 upwards")
        if self.n < 1:
            raise ValueError("a request needs at least one image")

    def draw(self, rng: random.Random) -> Shape:
        """A request."""
        [size] = rng.choices(list(self.sizes), list(self.sizes.values()))
        steps = rng.randint(*self.steps)
        rows = 2 if rng.uniform(*self.guidance_scale) > 1 else 1
        return Shape(size, steps, rows, self.n)


@dataclass(frozen=True, slots=True)
class Clients:
    """A closed loop: so many clients, each sending its next request with the last one's answer.

    Their first requests are spread over the time that one alone would take.
    """

    count: int

    def __str__(self) -> str:
        return f"{self.count} client{'' if self.count == 1 else 's'}"


@dataclass(frozen=True, slots=True)
class Poisson:
    """Requests that know nothing of each other, so many a minute on average."""

    per_minute: float

    def __str__(self) -> str:
        return f"{self.per_minute:g}/min"


Load: TypeAlias = Clients | Poisson


@dataclass(slots=True, eq=False)
class Job:
    """A request under way; times are seconds of the virtual clock.

    Args:
        id: Its place in the order of arrival.
        shape: What it asks for.
        arrived: When it was queued.
        claimed: When a worker took it.
        begun: When the first step of its first image began.
        ended: When its last image was decoded.
        images_left: Images not decoded.
    """

    id: int
    shape: Shape
    arrived: float
    claimed: float | None = None
    begun: float | None = None
    ended: float | None = None
    images_left: int = field(init=False)

    def __post_init__(self) -> None:
        self.images_left = self.shape.n


@dataclass(slots=True, eq=False)
class Sample:
    """One image of a job."""

    job: Job
    index: int
    steps_left: int

    @property
    def key(self) -> tuple[int, int]:
        """Unique among all images."""
        return self.job.id, self.index

    @property
    def size(self) -> Size:
        """Width and height in pixels."""
        return self.job.shape.size

    @property
    def rows(self) -> int:
        """Rows of a U-Net call."""
        return self.job.shape.rows
