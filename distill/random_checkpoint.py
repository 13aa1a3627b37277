"""Make a full-size diffusers folder with random weights: ``python -m distill.random_checkpoint``.

It has the layout, the sizes and the cost of a published checkpoint and draws noise, so loading,
memory and speed can be tried where the published weights are out of reach. Weights are written one
tensor at a time: what it takes is the largest tensor, not the model. Its tokenizers are the demo
model's, a small vocabulary in place of CLIP's.
"""

import argparse
import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import diffusers
import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from distill.export import MODEL_DIR
from distill.tensor_file import write_tensors
from koala.architecture import SCHEDULER, TEXT_ENCODER, TEXT_ENCODER_2, UNETS, VAE

DTYPES: Final = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}

_HEAD_WIDTH: Final = 64
_NORM_GROUPS: Final = 32
_VAE_FACTOR: Final = 8
_INDEX: Final = {
    "unet": ("diffusers", "UNet2DConditionModel"),
    "vae": ("diffusers", "AutoencoderKL"),
    "scheduler": ("diffusers", "EulerDiscreteScheduler"),
    "text_encoder": ("transformers", "CLIPTextModel"),
    "text_encoder_2": ("transformers", "CLIPTextModelWithProjection"),
    "tokenizer": ("transformers", "CLIPTokenizer"),
    "tokenizer_2": ("transformers", "CLIPTokenizer"),
}


def make(
    model: str, folder: Path, dtype: torch.dtype, side: int = 1024, narrow: int = 1, seed: int = 0
) -> None:
    """Write the checkpoint.

    Args:
        model: A key of ``koala.architecture.UNETS``.
        folder: Where to; it must not exist.
        dtype: Of the weights. Files of fp16 are named as the hub's fp16 variant is.
        side: Native side in pixels that the configs tell; the weights do not depend on it.
        narrow: Divides all widths, rounded to what the layers can have; 1: full size.
        seed: Of the weights.

    Raises:
        FileExistsError: There is something at ``folder``.
        ValueError: ``model`` is not known, or ``side`` is no multiple of 8.
    """
    if model not in UNETS:
        raise ValueError(f"model: {model!r} is none of {', '.join(UNETS)}")
    if side < _VAE_FACTOR or side % _VAE_FACTOR:
        raise ValueError(f"side: {side} is not a multiple of {_VAE_FACTOR}")
    folder.mkdir(parents=True)
    first, second = _text(TEXT_ENCODER, narrow), _text(TEXT_ENCODER_2, narrow)
    with torch.device("meta"):
        parts: dict[str, nn.Module] = {
            "unet": UNet2DConditionModel(**_unet(model, first, second, side, narrow)),
            "vae": AutoencoderKL(**_vae(side, narrow)),
            "text_encoder": CLIPTextModel(CLIPTextConfig(**first)),
            "text_encoder_2": CLIPTextModelWithProjection(CLIPTextConfig(**second)),
        }
    generator = torch.Generator().manual_seed(seed)
    for name, module in parts.items():
        is_text = name.startswith("text")
        _save_config(module, folder / name)
        stem = "model" if is_text else "diffusion_pytorch_model"
        variant = ".fp16" if dtype == torch.float16 else ""
        shapes = {key: tuple(value.shape) for key, value in module.state_dict().items()}
        path = folder / name / f"{stem}{variant}.safetensors"
        write_tensors(path, shapes, dtype, lambda key, shape: _random(key, shape, generator))
    scheduler: Any = EulerDiscreteScheduler(**SCHEDULER)
    scheduler.save_pretrained(folder / "scheduler")
    for name in ("tokenizer", "tokenizer_2"):
        shutil.copytree(MODEL_DIR / name, folder / name)
    index = {
        "_class_name": "StableDiffusionXLPipeline",
        "_diffusers_version": diffusers.__version__,
        "force_zeros_for_empty_prompt": True,
        **_INDEX,
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _narrowed(width: int, by: int, multiple: int) -> int:
    return max(multiple, round(width / by / multiple) * multiple)


def _text(config: Mapping[str, Any], narrow: int) -> dict[str, Any]:
    width = _narrowed(config["hidden_size"], narrow, _HEAD_WIDTH)
    return {
        **config,
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "projection_dim": width,
        "num_attention_heads": width // _HEAD_WIDTH,
    }


def _unet(
    model: str, first: Mapping[str, Any], second: Mapping[str, Any], side: int, narrow: int
) -> dict[str, Any]:
    config = UNETS[model]
    channels = [_narrowed(c, narrow, _NORM_GROUPS) for c in config["block_out_channels"]]
    return {
        **config,
        "sample_size": side // _VAE_FACTOR,
        "block_out_channels": tuple(channels),
        "attention_head_dim": tuple(max(1, c // _HEAD_WIDTH) for c in channels),
        "cross_attention_dim": first["hidden_size"] + second["hidden_size"],
        "projection_class_embeddings_input_dim": (
            6 * config["addition_time_embed_dim"] + second["projection_dim"]
        ),
    }


def _vae(side: int, narrow: int) -> dict[str, Any]:
    channels = [_narrowed(c, narrow, _NORM_GROUPS) for c in VAE["block_out_channels"]]
    return {**VAE, "sample_size": side, "block_out_channels": tuple(channels)}


def _save_config(module: Any, folder: Path) -> None:
    if isinstance(module, (UNet2DConditionModel, AutoencoderKL)):
        module.save_config(folder)
    else:
        # transformers reads from its config what to load.
        module.config.architectures = [type(module).__name__]
        module.config.save_pretrained(folder)


def _random(name: str, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Values (``shape``) that keep activations at about unit scale."""
    if len(shape) < 2:
        return torch.ones(shape) if name.endswith("weight") else torch.zeros(shape)
    fan_in = torch.Size(shape[1:]).numel()
    return torch.randn(shape, generator=generator).div_(math.sqrt(fan_in))


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", choices=sorted(UNETS))
    parser.add_argument("folder", type=Path, help="must not exist")
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="fp16")
    parser.add_argument("--side", type=int, default=1024, help="native side in pixels")
    parser.add_argument("--narrow", type=int, default=1, help="divides all widths")
    arguments = parser.parse_args()
    try:
        make(
            arguments.model,
            arguments.folder,
            DTYPES[arguments.dtype],
            side=arguments.side,
            narrow=arguments.narrow,
        )
    except (FileExistsError, ValueError) as error:
        parser.error(str(error))
    size = sum(path.stat().st_size for path in arguments.folder.rglob("*.safetensors"))
    print(f"wrote {arguments.folder}: {size / 2**30:.2f} GiB of weights")


if __name__ == "__main__":
    main()
