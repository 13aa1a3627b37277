"""One image on its way from noise to latents that can be decoded."""

from typing import Any

import torch
from diffusers.utils.torch_utils import randn_tensor

from worker.batching import Size
from worker.engine.conditioning import Conditioning
from worker.engine.lora import AppliedLora
from worker.engine.memory import is_fatal
from worker.engine.pipeline import ResidentPipeline
from worker.engine.request import SampleKey, SampleRequest
from worker.engine.schedulers import step_arguments


class NonFiniteError(ArithmeticError):
    """A sample's latents or pixels hold NaN or infinity; nothing can be drawn from them."""


class Sample:
    """The state of one image: latents, a scheduler of its own, its generator, its conditioning.

    Latents start as diffusers' own pipeline starts them: noise from a CPU generator in the prompt
    embeddings' dtype, times the scheduler's ``init_noise_sigma``. So an image depends on its seed
    and not on its company.

    Raises:
        ValueError: There is no such scheduler, the checkpoint does not go with it, or it cannot
            make a schedule of so many steps.
    """

    def __init__(
        self,
        request: SampleRequest,
        pipeline: ResidentPipeline,
        positive: Conditioning,
        negative: Conditioning | None,
        loras: tuple[AppliedLora, ...] = (),
    ) -> None:
        self.request = request
        self.positive = positive
        self.negative = negative
        self.loras = loras
        self.shape = pipeline.latent_shape(request.width, request.height)
        self._scheduler = pipeline.new_scheduler(request.num_inference_steps, request.scheduler)
        self._timesteps: torch.Tensor = self._scheduler.timesteps
        self._position = 0
        # Whether the last U-Net call completed a denoising step.
        self.completed_step = False
        # What the latents (1, C, h, w) would end as, after a step that a preview is wanted of.
        self.predicted: torch.Tensor | None = None
        # Why that is not known after such a step.
        self.prediction_error: Exception | None = None
        self._generator = torch.Generator("cpu").manual_seed(request.seed)
        self._step_arguments = step_arguments(self._scheduler, self._generator)
        dtype = positive.prompt_embeds.dtype
        noise = randn_tensor((1, *self.shape), self._generator, pipeline.device, dtype)
        self.latents: torch.Tensor = noise * self._scheduler.init_noise_sigma
        # SDXL's size conditioning (https://arxiv.org/abs/2307.01952, section 2.2): original size,
        # crop, target size.
        height, width = request.height, request.width
        self.add_time_ids = torch.tensor(
            [[height, width, 0, 0, height, width]], dtype=dtype, device=pipeline.device
        )

    @property
    def key(self) -> SampleKey:
        """The caller's name for the sample."""
        return self.request.key

    @property
    def size(self) -> Size:
        """Width and height in pixels."""
        return self.request.size

    @property
    def bytes(self) -> int:
        """Bytes of its latents and its conditioning, which other samples may share."""
        tensors = [self.latents]
        for conditioning in (self.positive, self.negative):
            if conditioning is not None:
                tensors += [conditioning.prompt_embeds, conditioning.pooled_prompt_embeds]
        return sum(tensor.nbytes for tensor in tensors)

    @property
    def timestep(self) -> torch.Tensor:
        """The timestep to predict the noise at, without dimensions."""
        return self._timesteps[self._position]

    @property
    def is_denoised(self) -> bool:
        """Whether all steps are done."""
        return self._position == len(self._timesteps)

    @property
    def steps_done(self) -> int:
        """Denoising steps done.

        Schedulers of higher order evaluate the U-Net several times per step and some begin with
        extra evaluations, so this can lag behind the number of U-Net calls.
        """
        steps = self.request.num_inference_steps
        if self.is_denoised:
            return steps
        order: int = self._scheduler.order
        extra = max(len(self._timesteps) - steps * order, 0)
        return max(self._position - extra, 0) // order

    def model_input(self) -> torch.Tensor:
        """The latents (1, C, h, w) as the U-Net wants them at :attr:`timestep`."""
        scaled: torch.Tensor = self._scheduler.scale_model_input(self.latents, self.timestep)
        return scaled

    def advance(self, noise_pred: torch.Tensor) -> None:
        """One scheduler step with the predicted noise (1, C, h, w), guidance already applied.

        A step that raises leaves the sample as it was, so that it can be taken again. That no
        preview can be had of it is no reason to raise.
        """
        steps_before = self.steps_done
        state = self._state()
        predicted, prediction_error = self._try_to_predict(noise_pred)
        try:
            (latents, *_) = self._scheduler.step(
                noise_pred, self.timestep, self.latents, **self._step_arguments, return_dict=False
            )
        except Exception:
            self._restore(state)
            raise
        self.latents = latents.to(self.latents.dtype)
        self._position += 1
        self.completed_step = self.steps_done > steps_before
        is_shown = self.completed_step and not self.is_denoised
        self.predicted = predicted if is_shown else None
        self.prediction_error = prediction_error if is_shown else None

    @property
    def wanted_preview(self) -> bool:
        """Whether a preview is wanted of the step that was just done."""
        return self.predicted is not None or self.prediction_error is not None

    def _try_to_predict(self, output: torch.Tensor) -> tuple[torch.Tensor | None, Exception | None]:
        if self.steps_done + 1 not in self.request.preview_steps:
            return None, None
        try:
            return self._predict(output), None
        except Exception as error:
            if is_fatal(error):
                raise
            return None, error.with_traceback(None)

    def _predict(self, output: torch.Tensor) -> torch.Tensor:
        """The clean latents that the U-Net's output points to (https://arxiv.org/abs/2010.02502,
        equation 9; for v-prediction https://arxiv.org/abs/2202.00512, appendix D).

        The scaled input is, for all schedulers, the sample of the variance-preserving process.
        """
        noisy = self.model_input().float()
        output = output.float()
        alphas: torch.Tensor = self._scheduler.alphas_cumprod
        # Some schedules have timesteps between the training's own.
        position = min(max(round(float(self.timestep)), 0), len(alphas) - 1)
        alpha = alphas[position].to(noisy.device, torch.float32)
        signal, noise = alpha.sqrt(), (1 - alpha).sqrt()
        if self._scheduler.config.prediction_type == "v_prediction":
            return signal * noisy - noise * output
        return (noisy - noise * output) / signal

    def _state(self) -> tuple[dict[str, Any], torch.Tensor]:
        """What a scheduler step changes: the scheduler's attributes, lists in them, the noise."""
        attributes = {
            name: list(value) if isinstance(value, list) else value
            for name, value in vars(self._scheduler).items()
        }
        return attributes, self._generator.get_state()

    def _restore(self, state: tuple[dict[str, Any], torch.Tensor]) -> None:
        attributes, noise = state
        vars(self._scheduler).clear()
        vars(self._scheduler).update(attributes)
        self._generator.set_state(noise)
