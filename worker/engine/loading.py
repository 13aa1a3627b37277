"""Loads a checkpoint, or says in one line why it cannot."""

import json
from pathlib import Path
from typing import Any, Final

import torch
from diffusers import AutoencoderKL, StableDiffusionXLPipeline
from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging

from koala import hub
from koala.catalogue import HubSource
from koala.checkpoint import (
    PARTS_WITH_WEIGHTS,
    CheckpointError,
    check_folder,
    is_fp16_variant,
    pipeline_files,
    vae_files,
)
from worker.engine.device import choose, is_cuda
from worker.engine.residency import Residency, place

_DTYPES: Final = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
}
# diffusers leaves these functions without types.
_Pipeline: Final[Any] = StableDiffusionXLPipeline
_Vae: Final[Any] = AutoencoderKL
_LOGGING: Final[Any] = (diffusers_logging, transformers_logging)


class ModelLoadError(Exception):
    """A model cannot be loaded; the message is one line for the person who chose it."""


def load_pipeline(
    model: str | Path,
    revision: str | None,
    device: str,
    dtype: str,
    scheduler_overrides: dict[str, Any],
    fp16_vae: HubSource | None = None,
    residency: Residency = Residency.ALL,
) -> Any:
    """diffusers' ``StableDiffusionXLPipeline``, its models where ``residency`` wants them.

    The arguments are those of :meth:`ResidentPipeline.load`.

    Raises:
        ModelLoadError: It cannot be loaded.
    """
    torch_device = device_of(device)
    torch_dtype = dtype_of(dtype, torch_device)
    folder = _folder(model, revision)
    _check_shape(folder, model)
    try:
        check_folder(folder, str(model))
    except CheckpointError as error:
        raise ModelLoadError(str(error)) from None
    # Bars of half a second would only litter a service's log. Downloads keep theirs.
    for logging in _LOGGING:
        logging.disable_progress_bar()
    try:
        pipeline = _Pipeline.from_pretrained(
            folder,
            dtype=torch_dtype,
            variant=_variant(folder, torch_dtype),
            use_safetensors=True,
            local_files_only=True,
            add_watermarker=False,
            **_replaced_vae(folder, model, torch_dtype, fp16_vae),
        )
        pipeline.scheduler = _overridden(pipeline.scheduler, scheduler_overrides)
        place(pipeline, torch_device, residency)
        return pipeline
    except ModelLoadError:
        raise
    # Broken files end in errors of json, safetensors, transformers, torch: no common base.
    except Exception as error:
        raise ModelLoadError(f"{model} cannot be loaded: {_one_line(error)}") from error


def _variant(folder: Path, dtype: torch.dtype) -> str | None:
    """``fp16`` where its files are to be read: for fp16 any, else what has no others."""
    inside = {
        part: [is_fp16_variant(path.name) for path in (folder / part).glob("*.safetensors")]
        for part in PARTS_WITH_WEIGHTS
    }
    wanted = any if dtype == torch.float16 else all
    return "fp16" if any(wanted(variants) for variants in inside.values()) else None


def _replaced_vae(
    folder: Path, model: str | Path, dtype: torch.dtype, fp16_vae: HubSource | None
) -> dict[str, Any]:
    """The VAE that takes the place of one that overflows in fp16, as a keyword argument."""
    overflows = _read_json(folder / "vae" / "config.json", model).get("force_upcast", True)
    if fp16_vae is None or dtype != torch.float16 or not overflows:
        return {}
    found = _located(fp16_vae.repo, fp16_vae.revision, vae_files)
    return {"vae": _Vae.from_pretrained(found, torch_dtype=dtype, local_files_only=True)}


def _overridden(scheduler: Any, overrides: dict[str, Any]) -> Any:
    unknown = sorted(overrides.keys() - scheduler.config.keys())
    if unknown:
        # from_config would ignore them.
        name = type(scheduler).__name__
        raise ModelLoadError(f"{name} has no setting {', '.join(unknown)}")
    return type(scheduler).from_config(scheduler.config, **overrides)


def device_of(device: str) -> torch.device:
    """The device that ``auto``, ``cpu``, ``cuda`` or ``cuda:N`` names.

    Raises:
        ModelLoadError: It is none of them, or there is no such card.
    """
    try:
        return choose(device)
    except ValueError as error:
        raise ModelLoadError(str(error)) from None


def dtype_of(dtype: str, device: torch.device) -> torch.dtype:
    """The number format that ``auto``, ``float16``, ``bfloat16`` or ``float32`` names.

    Raises:
        ModelLoadError: It is none of them.
    """
    if dtype == "auto":
        return torch.float16 if is_cuda(device) else torch.float32
    if dtype not in _DTYPES:
        raise ModelLoadError(f"{dtype!r} is not a dtype: use auto, {', '.join(_DTYPES)}")
    return _DTYPES[dtype]


def _folder(model: str | Path, revision: str | None) -> Path:
    """The diffusers folder: ``model`` itself, or where the hub's files were put."""
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder
    if isinstance(model, Path) or model.count("/") != 1 or model.startswith((".", "~", "/")):
        raise ModelLoadError(f"there is no folder {model}")
    return _located(model, revision, pipeline_files)


def _located(repo: str, revision: str | None, select: hub.Selection) -> Path:
    try:
        return hub.locate(repo, revision, select)
    except (hub.HubError, CheckpointError) as error:
        raise ModelLoadError(str(error)) from error


def _check_shape(folder: Path, model: str | Path) -> None:
    """Refuse what this engine would draw wrongly: only plain SDXL pipelines pass."""
    index = _read_json(folder / "model_index.json", model)
    pipeline_class = index.get("_class_name")
    if pipeline_class != StableDiffusionXLPipeline.__name__:
        raise ModelLoadError(f"{model} is not SDXL-shaped: its pipeline is {pipeline_class}")
    for part in PARTS_WITH_WEIGHTS:
        if not any(index.get(part) or ()):
            raise ModelLoadError(f"{model} is not SDXL-shaped: it has no {part}")
    unet = _read_json(folder / "unet" / "config.json", model)
    vae = _read_json(folder / "vae" / "config.json", model)
    channels, latent_channels = unet.get("in_channels", 4), vae.get("latent_channels", 4)
    if unet.get("addition_embed_type") != "text_time":
        raise ModelLoadError(f"{model} is not SDXL-shaped: its U-Net takes no size conditioning")
    if channels != latent_channels:
        raise ModelLoadError(
            f"{model} is not for text to image: its U-Net takes {channels} channels, "
            f"its VAE has {latent_channels}"
        )
    if unet.get("time_cond_proj_dim") is not None:
        raise ModelLoadError(f"{model} takes the guidance scale as an input, which is unsupported")


def _read_json(path: Path, model: str | Path) -> dict[str, Any]:
    name = f"{path.parent.name}/{path.name}" if path.name == "config.json" else path.name
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelLoadError(f"{model} is not a diffusers folder: it has no {name}") from None
    except ValueError as error:
        raise ModelLoadError(f"{model} has a broken {name}: {_one_line(error)}") from None
    if not isinstance(content, dict):
        raise ModelLoadError(f"{model} has a broken {name}: it holds no object")
    return content


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
