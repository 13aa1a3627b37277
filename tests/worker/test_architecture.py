"""The models' definitions, built without memory and counted."""

from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from koala.architecture import TEXT_ENCODER, TEXT_ENCODER_2, UNETS, VAE
from koala.catalogue import CATALOGUE

# diffusers leaves its constructors without types.
Unet: Any = UNet2DConditionModel
Vae: Any = AutoencoderKL


def millions(module: nn.Module) -> float:
    return sum(p.numel() for p in module.parameters()) / 1e6


@pytest.mark.parametrize(
    ("name", "expected"), [("koala-700m", 782.8), ("koala-1b", 1161.2), ("sdxl", 2567.5)]
)
def test_the_unets_have_as_many_parameters_as_published(name: str, expected: float) -> None:
    with torch.device("meta"):
        assert round(millions(Unet(**UNETS[name])), 1) == expected


def test_the_catalogue_tells_how_much_the_weights_weigh() -> None:
    with torch.device("meta"):
        text_encoder = CLIPTextModel(CLIPTextConfig(**TEXT_ENCODER))
        text_encoder_2 = CLIPTextModelWithProjection(CLIPTextConfig(**TEXT_ENCODER_2))
        vae = Vae(**VAE)
        unets = {name: Unet(**config) for name, config in UNETS.items()}
    others = millions(text_encoder) + millions(text_encoder_2) + millions(vae)
    for card in CATALOGUE:
        if card.unet is not None:
            # fp16, and the other VAE in fp32 as it is published.
            megabytes = 2 * (millions(unets[card.unet]) + others) + 4 * millions(vae)
            assert card.download_bytes == pytest.approx(1e6 * megabytes, rel=0.001), card.id
