"""Where a model's parts are kept: what a card with less memory does without."""

from enum import StrEnum
from typing import Any

import torch


class Residency(StrEnum):
    """Four steps from fast to small. Each includes those before it.

    The first two draw the same pixels. Tiles and 8-bit weights change them a little.
    """

    # Everything stays on the device; images up to 1280 px are decoded in one piece.
    ALL = "all"
    # The text encoders come from the CPU's memory for the time of encoding.
    OFFLOAD_TEXT = "offload_text"
    # The VAE decodes by tiles.
    TILE_VAE = "tile_vae"
    # The U-Net keeps its weights in 8-bit floats and widens those of the layer that runs.
    FP8_UNET = "fp8_unet"

    @property
    def offloads_text(self) -> bool:
        """Whether the text encoders are on the device only while they encode."""
        return self is not Residency.ALL

    @property
    def tiles_vae(self) -> bool:
        """Whether every image larger than a tile is decoded by tiles."""
        return self in (Residency.TILE_VAE, Residency.FP8_UNET)

    @property
    def narrows_unet(self) -> bool:
        """Whether the U-Net's weights are stored in 8 bits."""
        return self is Residency.FP8_UNET


def narrow(unet: Any) -> None:
    """Store the weights of diffusers' ``unet`` as 8-bit floats, norms excepted, in place.

    Each layer widens its own while it runs, so calls compute in the number format of before.
    """
    unet.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=unet.dtype)


def place(pipeline: Any, device: torch.device, residency: Residency) -> None:
    """Move the models of diffusers' ``pipeline`` to where ``residency`` wants them.

    The U-Net is narrowed before it is moved, so the device never has to hold the whole of it.
    """
    if residency.narrows_unet:
        narrow(pipeline.unet)
    pipeline.unet.to(device)
    pipeline.vae.to(device)
    if not residency.offloads_text:
        pipeline.text_encoder.to(device)
        pipeline.text_encoder_2.to(device)
