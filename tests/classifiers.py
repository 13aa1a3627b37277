"""Small safety checkers: one that learned to refuse red backgrounds, one of random numbers."""

from pathlib import Path

import torch
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
)

from distill.scenes import BACKGROUNDS

_SIDE = 32


def save_classifier(folder: Path, unsafe: str = "nsfw") -> Path:
    """A classifier whose label ``unsafe`` means a red background, trained for a second."""
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=_SIDE,
        patch_size=8,
        id2label={0: "normal", 1: unsafe},
        label2id={"normal": 0, unsafe: 1},
    )
    model = ViTForImageClassification(config)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    colours = torch.tensor(list(BACKGROUNDS.values())) / 127.5 - 1
    red = list(BACKGROUNDS).index("red")
    for _ in range(150):
        chosen = torch.randint(len(colours), (32,))
        chosen[:12] = red
        pixels = colours[chosen].view(-1, 3, 1, 1) + 0.1 * torch.randn(32, 3, _SIDE, _SIDE)
        # Something in the middle, as in the demo model's images.
        pixels[:, :, 10:22, 10:22] = 2 * torch.rand(32, 3, 1, 1) - 1
        loss = model(pixel_values=pixels, labels=(chosen == red).long()).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.save_pretrained(folder)
    ViTImageProcessorPil(size={"height": _SIDE, "width": _SIDE}).save_pretrained(folder)
    return folder


def random_checker() -> tuple[StableDiffusionSafetyChecker, CLIPImageProcessorPil]:
    """diffusers' safety checker in small, of random numbers, which refuses about half of noise."""
    torch.manual_seed(1)
    vision = {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "image_size": _SIDE,
        "patch_size": 8,
    }
    model = StableDiffusionSafetyChecker(CLIPConfig(vision_config=vision, projection_dim=8))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.5)
        model.concept_embeds_weights.fill_(0.797)
        model.special_care_embeds_weights.fill_(0.065)
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": _SIDE}, crop_size={"height": _SIDE, "width": _SIDE}
    )
    return model.eval(), processor
