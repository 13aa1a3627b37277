"""The model in memory, and the few calls that the engine makes to it."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch

from koala.catalogue import HubSource
from koala.lora import LoraFolder
from worker.engine import device as devices
from worker.engine.compiled import UNetCall
from worker.engine.loading import ModelLoadError, load_pipeline
from worker.engine.lora import AppliedLora, Part, RowLoras, Shelf
from worker.engine.projection import Projection
from worker.engine.residency import Residency
from worker.engine.schedulers import Schedulers
from worker.engine.speedups import NO_SPEED_UPS, SpeedUps, speed_up
from worker.engine.text import OffloadedEncoder, ResidentEncoder, TextEncoder, TextEncoders
from worker.engine.tiny import TinyDecoder


class ResidentPipeline:
    """An SDXL-shaped checkpoint: text encoders, U-Net, VAE, and schedulers on demand.

    Args:
        pipeline: diffusers' ``StableDiffusionXLPipeline``, placed as ``residency`` wants it.
        name: What the checkpoint was loaded as.
        speed_ups: Applied to the models in place.
        residency: Where the parts are kept.
        loras: What samples may ask for; ``None``: none.

    Raises:
        ModelLoadError: A speed-up does not work here, or the latent-to-RGB map is malformed.
    """

    def __init__(
        self,
        pipeline: Any,
        name: str,
        speed_ups: SpeedUps = NO_SPEED_UPS,
        residency: Residency = Residency.ALL,
        loras: LoraFolder | None = None,
    ) -> None:
        self.name = name
        self.residency = residency
        self._speed_ups = speed_ups
        self._load: Callable[[], Any] | None = None
        self._run_unet: UNetCall
        self.device: torch.device = pipeline.unet.device
        self._take_in(pipeline)
        self._schedulers = Schedulers(pipeline.scheduler, self.device)
        self.dtype: torch.dtype = self._unet.dtype
        self.force_zeros_for_empty_prompt: bool = pipeline.config.force_zeros_for_empty_prompt
        self.vae_scale_factor: int = pipeline.vae_scale_factor
        self.native_side: int = pipeline.default_sample_size * self.vae_scale_factor
        self.max_prompt_tokens: int = pipeline.tokenizer.model_max_length - 2
        self.projection = _projection(pipeline)
        self.tiny_decoder: TinyDecoder | None = None
        models: dict[Part, Any] = {
            "unet": self._unet,
            "text_encoder": pipeline.text_encoder,
            "text_encoder_2": pipeline.text_encoder_2,
        }
        self.loras = Shelf(loras or LoraFolder(None), models, self.device, self.dtype)

    @classmethod
    def load(
        cls,
        model: str | Path,
        revision: str | None = None,
        device: str = "auto",
        dtype: str = "auto",
        scheduler_overrides: dict[str, Any] | None = None,
        torch_threads: int | None = None,
        speed_ups: SpeedUps = NO_SPEED_UPS,
        preview_decoder: Path | None = None,
        fp16_vae: HubSource | None = None,
        residency: Residency = Residency.ALL,
        loras: LoraFolder | None = None,
    ) -> "ResidentPipeline":
        """Load a diffusers folder or a hub id; safetensors only, and no code from the checkpoint.

        Args:
            model: A folder, or a hub id such as ``etri-vilab/koala-lightning-700m``.
            revision: Commit, tag or branch of the hub repository.
            device: ``auto`` (CUDA if there is any), ``cpu``, ``cuda`` or ``cuda:N``.
            dtype: ``auto`` (fp16 on CUDA, fp32 on CPU), ``float16``, ``bfloat16`` or ``float32``.
            scheduler_overrides: Entries that replace those of the checkpoint's scheduler config.
            torch_threads: CPU threads of torch, for the whole process; ``None`` leaves them.
            speed_ups: What to do so that the model runs faster.
            preview_decoder: A folder with diffusers' ``AutoencoderTiny``, for previews.
            fp16_vae: Takes, in fp16, the place of a VAE that overflows there; ``None``: such a
                VAE stays in fp32.
            residency: Where to keep its parts.
            loras: What samples may ask for; ``None``: none.

        Raises:
            ModelLoadError: It cannot be loaded or sped up; the message says why, in one line.
        """
        if residency.narrows_unet and (speed_ups.fuse_qkv or speed_ups.compile):
            # Fused weights would lose what widens them, and compiling cannot follow that.
            raise ModelLoadError(
                f"KOALA_RESIDENCY {residency} excludes KOALA_FUSE_QKV and KOALA_COMPILE"
            )
        if torch_threads is not None:
            torch.set_num_threads(torch_threads)

        def load() -> Any:
            overrides = scheduler_overrides or {}
            return load_pipeline(model, revision, device, dtype, overrides, fp16_vae, residency)

        resident = cls(load(), str(model), speed_ups, residency, loras)
        resident._load = load
        if preview_decoder is not None:
            channels = int(resident._unet.config.in_channels)
            resident.tiny_decoder = TinyDecoder.load(
                preview_decoder, channels, resident.device, resident.dtype
            )
        return resident

    @property
    def is_loaded(self) -> bool:
        """Whether the weights are there."""
        return self._unet.device.type != "meta" or self.device.type == "meta"

    def unload(self) -> None:
        """Let go of the weights; only tokens can be counted until :meth:`reload`.

        Raises:
            RuntimeError: The model was not made by :meth:`load`, so it could not come back.
        """
        if self._load is None:
            raise RuntimeError(f"{self.name} cannot be loaded again, so it stays")
        self._unet.to("meta")
        self._vae.to("meta")
        self._text.empty()
        self.loras.clear()
        # What was compiled for these weights holds on to them.
        self._run_unet = self._unet
        devices.release(self.device)

    def reload(self) -> None:
        """Load the weights again; does nothing while they are there.

        Raises:
            ModelLoadError: The checkpoint is not what it was.
        """
        if not self.is_loaded and self._load is not None:
            self._take_in(self._load())

    def _take_in(self, pipeline: Any) -> None:
        """Make the models of diffusers' ``pipeline`` this one's."""
        self._unet: Any = pipeline.unet.eval()
        self._vae: Any = pipeline.vae.eval()
        if self._vae.config.force_upcast and self._vae.dtype == torch.float16:
            # Such a VAE overflows in fp16. diffusers casts it to and fro around each call.
            self._vae.to(torch.float32)
        self._vae_dtype: torch.dtype = self._vae.dtype
        self._text = _text_encoders(pipeline, self.device, self.residency)
        self._run_unet = speed_up(pipeline, self._speed_ups)

    @property
    def side_multiple(self) -> int:
        """Sides that are multiples of this, in pixels, divide evenly at every level of the U-Net.

        Other multiples of ``vae_scale_factor`` work as well: the U-Net then pads and crops.
        """
        levels: int = len(self._unet.config.block_out_channels)
        return int(self.vae_scale_factor * 2 ** (levels - 1))

    @property
    def parameter_bytes(self) -> int:
        """Bytes that weights take on the device between two calls; few while unloaded."""
        tiny = self.tiny_decoder.parameter_bytes if self.tiny_decoder else 0
        if not self.is_loaded:
            return tiny
        parameters = [*self._unet.parameters(), *self._vae.parameters()]
        size: int = sum(p.numel() * p.element_size() for p in parameters)
        return size + self._text.bytes + tiny

    @property
    def vae_is_half(self) -> bool:
        """Whether the VAE computes in fp16, where it may overflow."""
        return bool(self._vae_dtype == torch.float16)

    @contextmanager
    def vae_in_float32(self) -> Iterator[None]:
        """Let the VAE compute in fp32 inside the context; its weights take twice the memory."""
        try:
            self._vae.to(torch.float32)
            yield
        finally:
            # Also where the cast itself ran out of memory halfway.
            self._vae.to(self._vae_dtype)

    def latent_shape(self, width: int, height: int) -> tuple[int, int, int]:
        """Channels, height and width of the latents of an image of ``width`` by ``height`` pixels.

        Raises:
            ValueError: There are no such latents.
        """
        scale = self.vae_scale_factor
        if width < scale or height < scale or width % scale or height % scale:
            raise ValueError(
                f"{width}x{height} px cannot be drawn: both sides must be multiples of {scale}"
            )
        return int(self._unet.config.in_channels), height // scale, width // scale

    def count_tokens(self, prompt: str) -> int:
        """Tokens of ``prompt`` as CLIP counts them, begin and end marks left out.

        What exceeds :attr:`max_prompt_tokens` is cut off when the prompt is encoded.
        """
        return self._text.count_tokens(prompt)

    def encode_prompts(
        self, prompts: list[str], loras: Sequence[Sequence[AppliedLora]] = ()
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Encode prompts in one batch, each cut to what the tokenizer's window holds.

        Args:
            prompts: The texts.
            loras: What to encode each of them with; empty: all without.

        Returns:
            ``prompt_embeds`` (n, tokens, cross_attention_dim): both encoders' last but one hidden
            states side by side; ``pooled_prompt_embeds`` (n, projection_dim): the second's.
        """
        rows = RowLoras(loras, self.device)
        prompt_embeds, pooled_prompt_embeds = self._text.encode(prompts, rows)
        return prompt_embeds.to(self.dtype), pooled_prompt_embeds.to(self.dtype)

    def predict_noise(
        self,
        latents: torch.Tensor,
        timesteps: torch.Tensor,
        prompt_embeds: torch.Tensor,
        pooled_prompt_embeds: torch.Tensor,
        add_time_ids: torch.Tensor,
        loras: RowLoras | None = None,
    ) -> torch.Tensor:
        """One U-Net call. Every argument has one entry per row, ``timesteps`` (rows,) included."""
        with ExitStack() as stack:
            call = self._run_unet
            if loras is not None and stack.enter_context(loras.applied("unet", self._unet)):
                # A compiled U-Net knows nothing of what is added.
                call = self._unet
            noise_pred, *_ = call(
                latents,
                timesteps,
                encoder_hidden_states=prompt_embeds,
                added_cond_kwargs={"text_embeds": pooled_prompt_embeds, "time_ids": add_time_ids},
                return_dict=False,
            )
        return noise_pred

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Decode latents (n, C, h, w) to pixels (n, 3, H, W), nominally in [-1, 1]."""
        config = self._vae.config
        latents = latents.to(self._vae.dtype)
        mean, std = (getattr(config, name, None) for name in ("latents_mean", "latents_std"))
        if mean is not None and std is not None:
            scale = latents.new_tensor(std).view(1, -1, 1, 1) / config.scaling_factor
            latents = latents * scale + latents.new_tensor(mean).view(1, -1, 1, 1)
        else:
            latents = latents / config.scaling_factor
        pixels: torch.Tensor = self._vae.decode(latents, return_dict=False)[0]
        return pixels

    def new_scheduler(self, num_inference_steps: int, name: str | None = None) -> Any:
        """A scheduler of its own for one sample: see :meth:`Schedulers.new`."""
        return self._schedulers.new(num_inference_steps, name)

    def scheduler_label(self, name: str | None = None) -> str:
        """What AUTOMATIC1111 calls the scheduler ``name``: see :meth:`Schedulers.label`."""
        return self._schedulers.label(name)

    def synchronize(self) -> None:
        """Wait until the device has done what it was told, so that times are its own."""
        devices.synchronize(self.device)


def _text_encoders(pipeline: Any, device: torch.device, residency: Residency) -> TextEncoders:
    modules = (pipeline.text_encoder, pipeline.text_encoder_2)
    if residency.offloads_text:
        uploads = devices.uploads_to(device)
        encoders: list[TextEncoder] = [OffloadedEncoder(module, uploads) for module in modules]
    else:
        encoders = [ResidentEncoder(module) for module in modules]
    tokenizers = (pipeline.tokenizer, pipeline.tokenizer_2)
    return TextEncoders(list(zip(tokenizers, encoders, strict=True)), device)


def _projection(pipeline: Any) -> Projection | None:
    folder = Path(pipeline.name_or_path) if pipeline.name_or_path else None
    try:
        return Projection.of(folder, pipeline.vae.config)
    except ValueError as error:
        raise ModelLoadError(str(error)) from None
