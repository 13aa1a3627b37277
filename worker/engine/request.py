"""What a caller asks of the engine."""

from dataclasses import dataclass
from typing import Any, TypeAlias

from koala.lora import LoraUse
from worker.batching import Size

# Any hashable: the engine compares keys and hands them back, and never looks inside.
SampleKey: TypeAlias = Any


@dataclass(frozen=True, slots=True)
class SampleRequest:
    """One image to draw.

    Args:
        key: The caller's own name for it, unique among the samples in the engine.
        prompt: What to draw.
        negative_prompt: What to keep away from; used with guidance only. ``None`` means the
            checkpoint's own unconditional embedding, which for SDXL is zeros, not the empty text.
        width: Pixels.
        height: Pixels.
        num_inference_steps: Denoising steps.
        guidance_scale: Weight of classifier-free guidance (w in https://arxiv.org/abs/2205.11487,
            equation 2); guidance is on above 1 and costs a second row in the batch.
        seed: Seeds the CPU generator that draws the initial noise, and the noise which some
            schedulers add in every step.
        scheduler: A key of ``koala.schedulers.SCHEDULERS``; ``None`` for the checkpoint's own.
        preview_steps: After which of its steps, counted from 1, a preview is wanted.
        lora: What is added to the model for this image.
    """

    key: SampleKey
    prompt: str
    negative_prompt: str | None
    width: int
    height: int
    num_inference_steps: int
    guidance_scale: float
    seed: int
    scheduler: str | None = None
    preview_steps: frozenset[int] = frozenset()
    lora: tuple[LoraUse, ...] = ()

    @property
    def size(self) -> Size:
        """Width and height in pixels."""
        return self.width, self.height

    @property
    def is_guided(self) -> bool:
        """Whether classifier-free guidance is on."""
        return self.guidance_scale > 1

    @property
    def rows(self) -> int:
        """Rows that the sample takes in a U-Net call."""
        return 2 if self.is_guided else 1
