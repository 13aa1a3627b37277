"""One U-Net call over all rows of a batch, and guidance."""

from collections.abc import Sequence

import torch

from worker.engine.lora import RowLoras
from worker.engine.pipeline import ResidentPipeline
from worker.engine.sample import Sample


class Batch:
    """Samples that share U-Net calls, and the inputs that stay the same from call to call.

    Row order: the unconditional rows of the guided samples, their conditional rows, the rows of
    the samples without guidance. So guidance is arithmetic on two slices.

    Args:
        samples: At least one, all of one latent shape.
    """

    def __init__(self, samples: Sequence[Sample]) -> None:
        guided = [sample for sample in samples if sample.request.is_guided]
        self.samples = guided + [sample for sample in samples if not sample.request.is_guided]
        self._guided = len(guided)
        conditionings = [sample.negative for sample in guided if sample.negative is not None]
        conditionings += [sample.positive for sample in self.samples]
        self._prompt_embeds = torch.cat([c.prompt_embeds for c in conditionings])
        self._pooled_prompt_embeds = torch.cat([c.pooled_prompt_embeds for c in conditionings])
        self._add_time_ids = torch.cat([s.add_time_ids for s in (*guided, *self.samples)])
        loras = [sample.loras for sample in (*guided, *self.samples)]
        self._loras = RowLoras(loras, self._prompt_embeds.device) if any(loras) else None
        # In fp32, because fp16 would round the scale itself.
        self._guidance_scales = torch.tensor(
            [sample.request.guidance_scale for sample in guided],
            dtype=torch.float32,
            device=self._prompt_embeds.device,
        ).view(-1, 1, 1, 1)

    @property
    def rows(self) -> int:
        """Rows of a U-Net call."""
        return self._guided + len(self.samples)

    def consists_of(self, samples: Sequence[Sample]) -> bool:
        """Whether this is the batch of just these samples."""
        return len(samples) == len(self.samples) and set(samples) == set(self.samples)

    def noise_pred(
        self,
        pipeline: ResidentPipeline,
        model_inputs: Sequence[torch.Tensor],
        most_rows: int | None = None,
    ) -> torch.Tensor:
        """Predict the noise of every sample at its own timestep: (rows, C, h, w).

        Args:
            pipeline: Runs the U-Net.
            model_inputs: Each sample's scaled latents (1, C, h, w), in the order of ``samples``.
            most_rows: Most rows of one call; where there are more, several calls are made.
        """
        timesteps = [sample.timestep for sample in self.samples]
        rows = (
            torch.cat([*model_inputs[: self._guided], *model_inputs]),
            torch.stack([*timesteps[: self._guided], *timesteps]),
            self._prompt_embeds,
            self._pooled_prompt_embeds,
            self._add_time_ids,
        )
        if most_rows is None or self.rows <= most_rows:
            return pipeline.predict_noise(*rows, self._loras)
        predicted = []
        for start in range(0, self.rows, most_rows):
            part = slice(start, start + most_rows)
            latents, times, embeds, pooled, time_ids = (tensor[part] for tensor in rows)
            loras = self._loras.part_of(part) if self._loras else None
            predicted.append(
                pipeline.predict_noise(latents, times, embeds, pooled, time_ids, loras)
            )
        return torch.cat(predicted)

    def guide(self, noise_pred: torch.Tensor) -> torch.Tensor:
        """Classifier-free guidance (https://arxiv.org/abs/2207.12598): rows to (samples, C, h, w).

        The conditional prediction of a guided sample is pushed away from its unconditional one;
        samples without guidance keep their only prediction.
        """
        if not self._guided:
            return noise_pred
        uncond, text = noise_pred[: self._guided], noise_pred[self._guided : 2 * self._guided]
        guided = (uncond + self._guidance_scales * (text - uncond)).to(noise_pred.dtype)
        return torch.cat([guided, noise_pred[2 * self._guided :]])
