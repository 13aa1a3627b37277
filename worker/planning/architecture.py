"""The configs of a model's parts: from its folder, or for known models from our own data."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from koala.architecture import TEXT_ENCODER, TEXT_ENCODER_2, UNETS, VAE
from koala.catalogue import ModelCard


class UnknownArchitecture(Exception):
    """Nobody knows how a model is built; the message says what would help."""


@dataclass(frozen=True)
class Architecture:
    """What the parts of an SDXL-shaped pipeline are built from.

    Args:
        unet: Config of diffusers' ``UNet2DConditionModel``.
        vae: Config of diffusers' ``AutoencoderKL``.
        text_encoder: Config of transformers' ``CLIPTextModel``.
        text_encoder_2: Config of transformers' ``CLIPTextModelWithProjection``.
        unet_name: ``sdxl``, ``koala-1b`` or ``koala-700m``; ``None``: another one.
    """

    unet: Mapping[str, Any]
    vae: Mapping[str, Any]
    text_encoder: Mapping[str, Any]
    text_encoder_2: Mapping[str, Any]
    unet_name: str | None = None


def architecture_of(card: ModelCard) -> Architecture:
    """How the model of ``card`` is built; its weights are not needed.

    Raises:
        UnknownArchitecture: It is neither a diffusers folder nor known by name.
    """
    folder = Path(card.source)
    if folder.is_dir():
        return Architecture(
            unet=_config(folder, "unet"),
            vae=_config(folder, "vae"),
            text_encoder=_config(folder, "text_encoder"),
            text_encoder_2=_config(folder, "text_encoder_2"),
        )
    if card.unet is None:
        raise UnknownArchitecture(
            f"{card.id} is neither in a folder here nor a model known by name: give its diffusers "
            "folder, whose config files are enough"
        )
    return Architecture(
        unet=UNETS[card.unet],
        vae=VAE,
        text_encoder=TEXT_ENCODER,
        text_encoder_2=TEXT_ENCODER_2,
        unet_name=card.unet,
    )


def _config(folder: Path, part: str) -> Mapping[str, Any]:
    path = folder / part / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UnknownArchitecture(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise UnknownArchitecture(f"{path} is not valid JSON: {error}") from None
    if not isinstance(config, dict):
        raise UnknownArchitecture(f"{path} holds no object")
    return config
