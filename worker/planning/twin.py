"""A pipeline on torch's meta device: every shape and no memory, so any model fits anywhere."""

from types import SimpleNamespace
from typing import Any, Final

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from worker.batching import Size
from worker.engine.pipeline import ResidentPipeline
from worker.engine.residency import narrow
from worker.planning.architecture import Architecture, UnknownArchitecture

# diffusers leaves these without types.
_UNet: Final[Any] = UNet2DConditionModel
_Vae: Final[Any] = AutoencoderKL


class Twin(ResidentPipeline):
    """The worker's own pipeline around weights that are not there.

    So what is planned is what the worker calls: its decoding in fp32 where the VAE asks for it,
    its tiles, its 8-bit weights.

    Args:
        architecture: How the parts are built.
        dtype: Number format of the weights.
        narrow_unet: Whether the U-Net's weights are stored in 8 bits.

    Raises:
        UnknownArchitecture: A config makes no model.
    """

    def __init__(
        self, architecture: Architecture, dtype: torch.dtype, narrow_unet: bool = False
    ) -> None:
        try:
            pipeline = _build(architecture, dtype)
            if narrow_unet:
                narrow(pipeline.unet)
        # Configs come from files: whatever is wrong in them ends in errors without a common base.
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UnknownArchitecture(f"the configs make no model: {reason}") from error
        super().__init__(pipeline, "twin")
        self._texts: list[Any] = [pipeline.text_encoder, pipeline.text_encoder_2]
        self._modules: list[torch.nn.Module] = [self._unet, self._vae, *self._texts]

    @property
    def vae_is_half(self) -> bool:
        """Never: pixels that are not there cannot overflow."""
        return False

    def tensors(self) -> list[torch.Tensor]:
        """All weights and buffers."""
        return [t for module in self._modules for t in (*module.parameters(), *module.buffers())]

    def blank_latents(self, size: Size, rows: int) -> torch.Tensor:
        """Latents (rows, C, h, w) of images of ``size``.

        Raises:
            ValueError: There are no such latents.
        """
        return torch.zeros((rows, *self.latent_shape(*size)), dtype=self.dtype, device="meta")

    def blank_conditioning(self, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Prompt embeddings (rows, tokens, width) and pooled ones (rows, width)."""
        config, tokens = self._unet.config, self.max_prompt_tokens + 2
        pooled = self._texts[1].config.projection_dim
        shapes = (rows, tokens, config.cross_attention_dim), (rows, pooled)
        embeds, pooled_embeds = (
            torch.zeros(shape, dtype=self.dtype, device="meta") for shape in shapes
        )
        return embeds, pooled_embeds

    @property
    def unet_bytes(self) -> int:
        """Bytes of the U-Net's weights."""
        return _bytes(self._unet)

    @property
    def vae_bytes(self) -> int:
        """Bytes of the VAE's weights."""
        return _bytes(self._vae)

    @property
    def text_bytes(self) -> int:
        """Bytes of both text encoders' weights."""
        return sum(_bytes(encoder) for encoder in self._texts)


def _build(architecture: Architecture, dtype: torch.dtype) -> Any:
    with torch.device("meta"):
        unet = _UNet.from_config(dict(architecture.unet)).to(dtype)
        vae = _Vae.from_config(dict(architecture.vae)).to(dtype)
        first, second = (
            CLIPTextConfig(**{k: v for k, v in config.items() if k != "dtype"})
            for config in (architecture.text_encoder, architecture.text_encoder_2)
        )
        text_encoder = CLIPTextModel(first).to(dtype)
        text_encoder_2 = CLIPTextModelWithProjection(second).to(dtype)
    return SimpleNamespace(
        unet=unet,
        vae=vae,
        text_encoder=text_encoder,
        text_encoder_2=text_encoder_2,
        tokenizer=_Tokenizer(first.max_position_embeddings),
        tokenizer_2=_Tokenizer(second.max_position_embeddings),
        scheduler=None,
        config=SimpleNamespace(force_zeros_for_empty_prompt=True),
        vae_scale_factor=2 ** (len(vae.config.block_out_channels) - 1),
        default_sample_size=unet.config.sample_size,
        name_or_path=None,
    )


class _Tokenizer:
    """Makes as many tokens as the real one."""

    def __init__(self, model_max_length: int) -> None:
        self.model_max_length = model_max_length

    def __call__(self, prompts: list[str], **_: Any) -> SimpleNamespace:
        shape = (len(prompts), self.model_max_length)
        return SimpleNamespace(input_ids=torch.zeros(shape, dtype=torch.long, device="meta"))


def _bytes(module: torch.nn.Module) -> int:
    tensors = (*module.parameters(), *module.buffers())
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
