"""Write a complete ``StableDiffusionXLPipeline`` folder with fp16 weights."""

from __future__ import annotations

import copy
import json
import os
import shutil
from pathlib import Path
from typing import Any, Final, TypeVar

import torch
from diffusers import AutoencoderKL, StableDiffusionXLPipeline
from torch import nn
from transformers import CLIPTokenizer

from distill.model import Denoiser, build_scheduler
from distill.tokenizer import save_tokenizer
from koala.catalogue import DEMO_FOLDER

MODEL_DIR: Final = DEMO_FOLDER
# Files of the folder that no export writes, and that every export therefore carries over.
M = TypeVar("M", bound=nn.Module)
KEPT: Final = ("README.md", "metrics.json", "samples.png")


def build_pipeline(
    vae: AutoencoderKL, denoiser: Denoiser, tokenizer: CLIPTokenizer
) -> StableDiffusionXLPipeline:
    """Assemble the parts, shared and not copied, into a pipeline on the CPU."""
    return StableDiffusionXLPipeline(
        vae=vae,
        text_encoder=denoiser.text_encoder,
        text_encoder_2=denoiser.text_encoder_2,
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=denoiser.unet,
        scheduler=build_scheduler(),
        force_zeros_for_empty_prompt=True,
        add_watermarker=False,
    )


def export(
    vae: AutoencoderKL,
    denoiser: Denoiser,
    tokenizer: CLIPTokenizer,
    folder: Path = MODEL_DIR,
) -> None:
    """Save the pipeline to ``folder``; readers never see a mixture of old and new."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = folder.with_name(f".{folder.name}.{os.getpid()}.new")
    old = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    shutil.rmtree(fresh, ignore_errors=True)
    pipeline = build_pipeline(_half(vae), _half(denoiser), tokenizer)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.save_pretrained(fresh, safe_serialization=True)
    for part in ("tokenizer", "tokenizer_2"):
        save_tokenizer(tokenizer, fresh / part)
    for part in ("text_encoder", "text_encoder_2"):
        # transformers would otherwise load these in fp16 beside fp32 diffusers parts.
        _edit_json(fresh / part / "config.json", {"dtype": "float32"})
    for name in KEPT:
        if (folder / name).is_file():
            shutil.copy2(folder / name, fresh / name)
    for path in fresh.rglob("*"):
        # safetensors writes files that only their owner may read.
        path.chmod(0o755 if path.is_dir() else 0o644)
    if folder.exists():
        folder.rename(old)
    fresh.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def _half(module: M) -> M:
    return copy.deepcopy(module).to(torch.float16)


def _edit_json(path: Path, changes: dict[str, Any]) -> None:
    value = json.loads(path.read_text(encoding="utf-8"))
    value.update(changes)
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def load_pipeline(folder: Path = MODEL_DIR) -> StableDiffusionXLPipeline:
    """Load an exported folder in fp32 on the CPU, without progress bars.

    Raises:
        FileNotFoundError: ``folder`` holds no pipeline.
    """
    if not (folder / "model_index.json").is_file():
        raise FileNotFoundError(
            f"no pipeline in {folder}; train one with `python -m distill.train`"
        )
    pipeline = StableDiffusionXLPipeline.from_pretrained(folder, add_watermarker=False)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
