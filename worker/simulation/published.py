"""Devices nobody here has, derived from the latencies that KOALA's authors published.

Published is, per card and U-Net, one latency at 512 px (KOALA-Turbo) and one at 1024 px
(KOALA-Lightning), in fp16 (https://arxiv.org/abs/2312.04005). From these two:

- A latency is a fixed part (prompts, kernel launches, reading the weights) and a part proportional
  to the pixels; two latencies give both.
- The decoder's share of the proportional part is its share of the FLOPs.
- The rest of it is spread over the rows of all steps, the fixed part over the steps.

So an idle request of either size takes exactly what was published.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final

from worker.batching import LADDER, Size, StepCurve
from worker.batching.sizes import pixels_of
from worker.simulation.device import Device

# As the model cards draw; the published Turbo latencies are taken to be of the same.
STEPS: Final = 10
GUIDANCE_SCALE: Final = 3.5
_ROWS: Final = 2

_TURBO_SIZE: Final[Size] = (512, 512)
_LIGHTNING_SIZE: Final[Size] = (1024, 1024)

# Counted with diffusers and torch's FLOP counter at 1024 px: one row through the U-Net, and one
# image through SDXL's decoder.
_UNET_TFLOPS: Final[Mapping[str, float]] = {"700m": 2.70, "1b": 3.43}
_DECODER_TFLOPS: Final = 10.47

# Seconds at 512 px (Turbo) and at 1024 px (Lightning), as published.
_LATENCIES: Final[Mapping[tuple[str, str], tuple[float, float]]] = {
    ("3060ti", "700m"): (0.74, 2.88),
    ("3060ti", "1b"): (0.92, 3.53),
    ("2080ti", "700m"): (0.54, 1.94),
    ("2080ti", "1b"): (0.66, 2.33),
    ("4090", "700m"): (0.19, 0.66),
    ("4090", "1b"): (0.24, 0.79),
}
_CARDS: Final[Mapping[str, str]] = {
    "3060ti": "RTX 3060 Ti 8 GB",
    "2080ti": "RTX 2080 Ti 11 GB",
    "4090": "RTX 4090 24 GB",
}


@dataclass(frozen=True)
class Profile:
    """A card and a model with a published latency.

    Args:
        card: The card's key.
        unet: ``700m`` or ``1b``.
        size: The model's native size.
        latency: Published seconds of one image of that size.
    """

    card: str
    unet: str
    size: Size
    latency: float

    @property
    def name(self) -> str:
        """What the command calls it."""
        kind = "turbo" if self.size == _TURBO_SIZE else "lightning"
        return f"{self.card}/koala-{kind}-{self.unet}"

    @property
    def _split(self) -> tuple[float, float]:
        """Seconds of a request whatever its pixels, and seconds per pixel."""
        turbo, lightning = _LATENCIES[self.card, self.unet]
        per_pixel = (lightning - turbo) / (pixels_of(_LIGHTNING_SIZE) - pixels_of(_TURBO_SIZE))
        return turbo - per_pixel * pixels_of(_TURBO_SIZE), per_pixel

    @property
    def _decoder_share(self) -> float:
        """The decoder's part of what is proportional to the pixels."""
        denoising = STEPS * _ROWS * _UNET_TFLOPS[self.unet]
        return _DECODER_TFLOPS / (denoising + _DECODER_TFLOPS)

    def step_seconds(self, size: Size, rows: int) -> float:
        """Seconds of a U-Net call."""
        fixed, per_pixel = self._split
        per_row = per_pixel * pixels_of(size) * (1 - self._decoder_share) / (STEPS * _ROWS)
        return fixed / STEPS + per_row * rows

    def decode_seconds(self, size: Size) -> float:
        """Seconds of decoding one image."""
        return self._split[1] * pixels_of(size) * self._decoder_share

    def curve(self, size: Size) -> StepCurve:
        """Seconds of a U-Net call by rows, up to where the engine would stop measuring."""
        points: dict[int, float] = {}
        for rows in LADDER:
            points[rows] = self.step_seconds(size, rows)
            if StepCurve(points).is_saturated:
                break
        return StepCurve(points)

    def device(
        self,
        sizes: Collection[Size] = (),
        max_rows: int | None = None,
        target_seconds: float | None = None,
    ) -> Device:
        """The device, with curves for ``sizes`` beside the native one."""
        known = (self.size, *(size for size in sizes if size != self.size))
        fixed = self._split[0] / _LATENCIES[self.card, self.unet][1]
        return Device(
            name=f"{_CARDS[self.card]}, {self.name.partition('/')[2]}",
            curves={size: self.curve(size) for size in known},
            decode_seconds={size: self.decode_seconds(size) for size in known},
            max_rows=max_rows,
            target_seconds=target_seconds,
            assumptions=(
                f"Derived, not measured: published is {self.latency:g} s for one image of "
                f"{self.size[0]} px (fp16, taken for {STEPS} steps with guidance).",
                f"Assumed: a part that does not depend on rows or pixels, {fixed:.0%} of a 1024 px "
                "request by the latencies at 512 and 1024 px, and the rest proportional to both; "
                "so one image of 1024 px nearly saturates the card.",
                f"Assumed: {self._decoder_share:.0%} of what is proportional is the decoder's, as "
                "of the FLOPs. Memory is not modelled: --max-rows is.",
            ),
        )


PROFILES: Final[Mapping[str, Profile]] = {
    profile.name: profile
    for (card, unet), (turbo, lightning) in _LATENCIES.items()
    for profile in (
        Profile(card, unet, _LIGHTNING_SIZE, lightning),
        Profile(card, unet, _TURBO_SIZE, turbo),
    )
}
