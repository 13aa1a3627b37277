"""The miniature SDXL parts: autoencoder, two CLIP text encoders, U-Net and scheduler.

The U-Net has the shape of KOALA-700M (Lee et al. 2024, "KOALA: Empirical Lessons Toward
Memory-Efficient and Fast Diffusion Models for Text-to-Image Synthesis"): three levels, one
residual block per level, no mid block, and transformers at the two lower levels only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, UNet2DConditionModel
from torch import Tensor, nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

from distill.captions import words
from distill.tokenizer import MAX_LENGTH, build_tokenizer

VAE_FACTOR: Final = 4
LATENT_CHANNELS: Final = 4
TEXT_WIDTH: Final = 64
TIME_ID_WIDTH: Final = 32
SAMPLE_SIZE: Final = 64


def build_vae() -> AutoencoderKL:
    """An autoencoder that maps 4 x 4 pixels to one 4-channel latent."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(24, 48, 64),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        sample_size=SAMPLE_SIZE,
        scaling_factor=1.0,
        force_upcast=False,
    )


def build_unet() -> UNet2DConditionModel:
    """The denoiser, 4.3 M parameters."""
    return UNet2DConditionModel(
        sample_size=SAMPLE_SIZE // VAE_FACTOR,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        mid_block_type=None,
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(32, 64, 128),
        layers_per_block=1,
        transformer_layers_per_block=(1, 1, 2),
        # In this class, and in SDXL's own config, this is the number of heads.
        attention_head_dim=(2, 2, 4),
        cross_attention_dim=2 * TEXT_WIDTH,
        use_linear_projection=True,
        # With 32 groups the first level would normalise each channel alone and so lose the
        # mean of the latents, which is the background colour.
        norm_num_groups=8,
        addition_embed_type="text_time",
        addition_time_embed_dim=TIME_ID_WIDTH,
        projection_class_embeddings_input_dim=6 * TIME_ID_WIDTH + TEXT_WIDTH,
    )


def text_config(tokenizer: CLIPTokenizer) -> CLIPTextConfig:
    """The config of both text encoders.

    SDXL conditions on ``hidden_states[-2]``; with three layers that is two layers deep, just
    enough to tell "left of" from "right of" for the token that follows it.
    """
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_WIDTH,
        intermediate_size=4 * TEXT_WIDTH,
        projection_dim=TEXT_WIDTH,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=MAX_LENGTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def build_scheduler() -> EulerDiscreteScheduler:
    """The noise schedule of SDXL, spaced so that sampling starts at the last train step."""
    return EulerDiscreteScheduler(
        num_train_timesteps=1000,
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        prediction_type="epsilon",
        timestep_spacing="trailing",
        steps_offset=1,
    )


@dataclass(frozen=True, slots=True)
class Conditioning:
    """What the U-Net is told: sequence (B, 77, 128), pooled (B, 64), time ids (B, 6)."""

    sequence: Tensor
    pooled: Tensor
    time_ids: Tensor


class Denoiser(nn.Module):
    """U-Net and text encoders as one module, since they train and average together."""

    def __init__(self, tokenizer: CLIPTokenizer) -> None:
        super().__init__()
        config = text_config(tokenizer)
        self.unet = build_unet()
        self.text_encoder = CLIPTextModel(config)
        self.text_encoder_2 = CLIPTextModelWithProjection(config)
        for encoder in (self.text_encoder, self.text_encoder_2.text_model):
            # CLIP's own 0.02 presumes a final layer norm; SDXL reads the raw residual stream,
            # which should reach the cross-attention at about unit scale.
            nn.init.normal_(encoder.embeddings.token_embedding.weight, std=0.6)
            nn.init.normal_(encoder.embeddings.position_embedding.weight, std=0.2)

    def encode(self, token_ids: Tensor, size: tuple[int, int]) -> Conditioning:
        """Encode token ids (B, 77) for a picture of ``size`` (width, height), as SDXL does."""
        first = self.text_encoder(token_ids, output_hidden_states=True)
        second = self.text_encoder_2(token_ids, output_hidden_states=True)
        sequence = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1)
        return Conditioning(sequence, second.text_embeds, time_ids(size, len(token_ids)))

    def forward(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """Predict the noise in latents (B, 4, h, w) at ``timesteps`` (B,)."""
        predicted: Tensor = self.unet(
            noisy,
            timesteps,
            encoder_hidden_states=conditioning.sequence,
            added_cond_kwargs={
                "text_embeds": conditioning.pooled,
                "time_ids": conditioning.time_ids,
            },
            return_dict=False,
        )[0]
        return predicted


def time_ids(size: tuple[int, int], batch: int) -> Tensor:
    """SDXL micro-conditioning (Podell et al. 2023): original size, crop corner, target size.

    Sizes are (height, width) there, and a pipeline call fills both with the requested size.
    """
    width, height = size
    row = [height, width, 0, 0, height, width]
    return torch.tensor([row], dtype=torch.float32).expand(batch, -1)


def caption_tokenizer() -> CLIPTokenizer:
    """The tokenizer of the caption grammar."""
    return build_tokenizer(words())
