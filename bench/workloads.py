"""What is asked for, and when: seeded, so that every contender gets the same."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, Final, TypeVar

from distill.captions import plain_caption
from distill.glyphs import NAMES
from distill.scenes import COLOURS, Scene

# Pixels of either side: the demo model's native size.
SIDE: Final = 64

_MIXED_STEPS: Final = tuple(range(4, 31))
# 0, 0.5, ... 7, as a slider gives them; up to 1 there is no guidance.
_MIXED_GUIDANCE: Final = tuple(i / 2 for i in range(15))

_T = TypeVar("_T")


class Workload(StrEnum):
    """``uniform``: 10 steps, guidance 3.5; ``mixed``: 4 to 30 steps, guidance 0 to 7."""

    UNIFORM = "uniform"
    MIXED = "mixed"


@dataclass(frozen=True, slots=True)
class Request:
    """One image to ask for."""

    prompt: str
    seed: int
    num_inference_steps: int
    guidance_scale: float

    @property
    def is_guided(self) -> bool:
        """Whether classifier-free guidance is on, for every contender alike."""
        return self.guidance_scale > 1

    @property
    def unet_rows(self) -> int:
        """Rows that the U-Net has to see for it: one per step, two with guidance."""
        return self.num_inference_steps * (2 if self.is_guided else 1)

    def body(self) -> dict[str, Any]:
        """The JSON body, the same for every contender."""
        return {**asdict(self), "response_format": "b64_json"}


def requests(workload: Workload, seed: int) -> Iterator[Request]:
    """An endless stream of requests; the same seed gives the same stream.

    Steps and guidance of ``mixed`` are dealt from shuffled decks and not drawn one by one: so any
    stretch of the stream costs nearly the same, and a short measurement is not a matter of luck.
    """
    draw = random.Random(f"{workload} {seed}")
    steps = _dealt(_MIXED_STEPS if workload is Workload.MIXED else (10,), draw)
    guidance = _dealt(_MIXED_GUIDANCE if workload is Workload.MIXED else (3.5,), draw)
    while True:
        scene = Scene((draw.choice(NAMES),), "centre", draw.choice(COLOURS))
        yield Request(plain_caption(scene), draw.randrange(2**32), next(steps), next(guidance))


def arrivals(rate: float, seconds: float, seed: int) -> list[float]:
    """Times of a Poisson process, in seconds from the start, ascending, below ``seconds``.

    Args:
        rate: Mean arrivals per second.
        seconds: Length of the process.
        seed: The same seed, rate and length give the same times.

    Raises:
        ValueError: ``rate`` is not positive.
    """
    if rate <= 0:
        raise ValueError(f"rate must be positive, got {rate}")
    draw = random.Random(f"arrivals {seed}")
    times = []
    now = draw.expovariate(rate)
    while now < seconds:
        times.append(now)
        now += draw.expovariate(rate)
    return times


def _dealt(values: Sequence[_T], draw: random.Random) -> Iterator[_T]:
    while True:
        yield from draw.sample(values, len(values))
