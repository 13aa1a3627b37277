"""Tiny LoRAs for the demo model, random ones, as different trainers save them."""

import json
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors.torch import save_file

_ATTENTION = {
    "attn1.to_q": (64, 64),
    "attn1.to_out.0": (64, 64),
    "attn2.to_k": (64, 128),
    "ff.net.0.proj": (512, 64),
}
_TRANSFORMER = "down_blocks.1.attentions.0.transformer_blocks.0"

# Layers of the U-Net, each with its outputs and inputs; a third number is a convolution's kernel.
UNET: dict[str, tuple[int, ...]] = {
    **{f"{_TRANSFORMER}.{name}": shape for name, shape in _ATTENTION.items()},
    "time_embedding.linear_1": (128, 32),
    "up_blocks.0.resnets.0.conv1": (128, 256, 3),
    "down_blocks.0.downsamplers.0.conv": (32, 32, 3),
}
# How kohya's scripts call them, which train SDXL with Stability AI's own code.
_SGM = {
    _TRANSFORMER: "input_blocks_3_1_transformer_blocks_0",
    "time_embedding.linear_1": "time_embed_0",
    "up_blocks.0.resnets.0.conv1": "output_blocks_0_0_in_layers_2",
    "down_blocks.0.downsamplers.0.conv": "input_blocks_2_0_op",
}
TEXT: dict[str, tuple[int, ...]] = {
    "encoder.layers.0.self_attn.q_proj": (64, 64),
    "encoder.layers.1.mlp.fc1": (256, 64),
}

Tensors = dict[str, torch.Tensor]


def peft(
    seed: int = 0,
    rank: int = 4,
    unet: Iterable[str] = tuple(UNET),
    text: bool = False,
    strength: float = 1.0,
) -> Tensors:
    """A LoRA as diffusers' ``save_lora_weights`` names it."""
    tensors: Tensors = {}
    for name, down, up in _pairs(seed, rank, unet, text, strength):
        tensors[f"{name}.lora_A.weight"] = down
        tensors[f"{name}.lora_B.weight"] = up
    return tensors


def kohya(
    seed: int = 0,
    rank: int = 4,
    alpha: float = 2.0,
    unet: Iterable[str] = tuple(UNET),
    text: bool = False,
    strength: float = 2.0,
    sgm: bool = False,
) -> Tensors:
    """A LoRA as kohya's scripts name it, the U-Net's layers called as in diffusers or in SGM."""
    prefixes = {"unet": "unet", "text_encoder": "te1", "text_encoder_2": "te2"}
    tensors: Tensors = {}
    for name, down, up in _pairs(seed, rank, unet, text, strength):
        part, _, layer = name.partition(".")
        for ours, theirs in _SGM.items() if sgm else ():
            layer = layer.replace(ours, theirs)
        key = f"lora_{prefixes[part]}_{layer.replace('.', '_')}"
        tensors[f"{key}.lora_down.weight"] = down
        tensors[f"{key}.lora_up.weight"] = up
        tensors[f"{key}.alpha"] = torch.tensor(alpha)
    return tensors


def write(folder: Path, name: str, tensors: Tensors, header: object = None) -> Path:
    """A file ``name.safetensors`` in ``folder``; ``header`` is what PEFT says of itself."""
    path = folder / f"{name}.safetensors"
    metadata = {} if header is None else {"lora_adapter_metadata": json.dumps(header)}
    save_file(tensors, path, metadata={"format": "pt", **metadata})
    return path


def _pairs(
    seed: int, rank: int, unet: Iterable[str], text: bool, strength: float
) -> list[tuple[str, torch.Tensor, torch.Tensor]]:
    draw = torch.Generator().manual_seed(seed)
    layers = {f"unet.{name}": UNET[name] for name in unet}
    if text:
        layers |= {f"text_encoder.text_model.{name}": shape for name, shape in TEXT.items()}
        layers |= {f"text_encoder_2.text_model.{name}": shape for name, shape in TEXT.items()}
    pairs = []
    for name, (outputs, inputs, *kernel) in layers.items():
        sides = kernel * 2
        down = torch.randn(rank, inputs, *sides, generator=draw) / (inputs * 9) ** 0.5
        up = torch.randn(outputs, rank, *(1 for _ in sides), generator=draw) * strength
        pairs.append((name, down, up))
    return pairs
