"""The configs of a model's parts: from its folder, or for known models from a file of ours."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

from koala.catalogue import ModelCard

_FILE: Final = "architectures.json"


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
    known = json.loads(files(__package__).joinpath(_FILE).read_text(encoding="utf-8"))
    name = known["models"].get(card.id)
    if name is None:
        raise UnknownArchitecture(
            f"{card.id} is not in a folder here and not one of {', '.join(known['models'])}: "
            "give its diffusers folder, whose config files are enough"
        )
    return Architecture(
        unet=known["unet"] | known["unets"][name],
        vae=known["vae"],
        text_encoder=known["text_encoder"],
        text_encoder_2=known["text_encoder_2"],
        unet_name=name,
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
