"""A LoRA in memory, read from a file that nobody has to trust."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

import torch
from safetensors import SafetensorError, safe_open

from worker.engine.lora.layers import Layer
from worker.engine.lora.names import Names, Part, Place, Role

Layers: TypeAlias = Mapping[Part, Mapping[str, Layer]]

_METADATA: Final = "lora_adapter_metadata"
# Keys that a message tells of.
_TOLD: Final = 3


class LoraError(Exception):
    """A LoRA cannot be used; the message says which one and why."""


@dataclass(frozen=True, slots=True, eq=False)
class LayerDelta:
    """What a LoRA adds to a layer: ``scale`` x up(down(x)), times the weight it is used with.

    Args:
        down: (rank, in) of a linear layer, (rank, in, kh, kw) of a convolution.
        up: (out, rank), (out, rank, 1, 1).
        scale: alpha / rank.
    """

    down: torch.Tensor
    up: torch.Tensor
    scale: float


@dataclass(frozen=True, slots=True, eq=False)
class Adapter:
    """A LoRA that fits the model.

    Args:
        name: Its name.
        stamp: Another one if its file is another one.
        parts: What it adds to which layers, by their path in the U-Net or a text encoder.
    """

    name: str
    stamp: str
    parts: Mapping[Part, Mapping[str, LayerDelta]]

    @property
    def bytes(self) -> int:
        """Bytes of its tensors."""
        deltas = [delta for part in self.parts.values() for delta in part.values()]
        return sum(delta.down.nbytes + delta.up.nbytes for delta in deltas)

    @property
    def changes_prompts(self) -> bool:
        """Whether prompts have to be encoded with it."""
        return any(part != "unet" for part in self.parts)


def stamp_of(path: Path) -> str:
    """What tells a file from the one that takes its place.

    Raises:
        LoraError: It is gone.
    """
    try:
        stat = path.stat()
    except OSError as error:
        raise LoraError(f"The LoRA {path.stem!r} cannot be read: {error.strerror}") from None
    return f"{path.stem}:{stat.st_ino}:{stat.st_size}:{stat.st_mtime_ns}"


def read_adapter(
    path: Path, layers: Layers, names: Names, device: torch.device, dtype: torch.dtype
) -> Adapter:
    """Read a LoRA and check it against the model's ``layers``; safetensors only.

    Raises:
        LoraError: It cannot be read, is for another model or of another kind, or is spoilt.
    """
    stamp = stamp_of(path)
    try:
        tensors, metadata = _read(path)
        places = names.places(tensors)
        _refuse_unknown([key for key, place in places.items() if place is None])
        found: dict[tuple[Part, str], dict[Role, torch.Tensor]] = {}
        for key, place in places.items():
            assert place is not None
            _put(found, place, tensors[key], key)
        parts: dict[Part, dict[str, LayerDelta]] = {}
        for (part, layer), roles in found.items():
            delta = _delta(f"{part}.{layer}", roles, layers[part][layer], metadata)
            down, up = (matrix.to(device, dtype) for matrix in (delta.down, delta.up))
            parts.setdefault(part, {})[layer] = LayerDelta(down, up, delta.scale)
    except ValueError as error:
        raise LoraError(f"The LoRA {path.stem!r} cannot be used: {error}") from None
    return Adapter(path.stem, stamp, parts)


def _read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    try:
        with safe_open(path, "pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            metadata = json.loads((file.metadata() or {}).get(_METADATA, "{}"))
    except SafetensorError as error:
        raise ValueError(f"it is no safetensors file ({error})") from None
    except OSError as error:
        raise ValueError(f"{error.strerror or error}") from None
    except json.JSONDecodeError:
        raise ValueError(f"its {_METADATA} is not JSON") from None
    if not tensors:
        raise ValueError("it is empty")
    if not isinstance(metadata, dict):
        raise ValueError(f"its {_METADATA} is no object")
    return tensors, metadata


def _refuse_unknown(keys: list[str]) -> None:
    if keys:
        more = f" and {len(keys) - _TOLD} more" if len(keys) > _TOLD else ""
        raise ValueError(
            "it is for another model or of a kind that is not supported (DoRA, LoHa, LoKr); these "
            f"keys fit no layer: {', '.join(sorted(keys)[:_TOLD])}{more}"
        )


def _put(
    found: dict[tuple[Part, str], dict[Role, torch.Tensor]],
    place: Place,
    tensor: torch.Tensor,
    key: str,
) -> None:
    if not tensor.is_floating_point() or not bool(torch.isfinite(tensor.float()).all()):
        raise ValueError(f"{key} holds NaN, infinity or no numbers with a point")
    roles = found.setdefault((place.part, place.layer), {})
    if place.role in roles:
        raise ValueError(f"{key} is for a layer that another key is for too")
    roles[place.role] = tensor


def _delta(
    where: str, roles: dict[Role, torch.Tensor], layer: Layer, metadata: dict[str, Any]
) -> LayerDelta:
    down, up = roles.get("down"), roles.get("up")
    if down is None or up is None:
        raise ValueError(f"{where} has only one of its two matrices")
    rank = down.shape[0] if down.dim() else 0
    wanted = layer.down_shape(rank), layer.up_shape(rank)
    if rank == 0 or (tuple(down.shape), tuple(up.shape)) != wanted:
        raise ValueError(
            f"{where} has the shapes {tuple(down.shape)} and {tuple(up.shape)}, the model's layer "
            f"wants {wanted[0]} and {wanted[1]}"
        )
    if "alpha" in roles:
        if roles["alpha"].numel() != 1:
            raise ValueError(f"{where} has more than one alpha")
        return LayerDelta(down, up, float(roles["alpha"]) / rank)
    return LayerDelta(down, up, _told_scale(where, rank, metadata))


def _told_scale(where: str, rank: int, metadata: dict[str, Any]) -> float:
    """The scale that PEFT's settings in the file's header ask for; 1 where there are none."""
    part, _, layer = where.partition(".")
    if metadata.get(f"{part}.use_dora"):
        raise ValueError("it is a DoRA, which is not supported")
    alpha = metadata.get(f"{part}.lora_alpha", rank)
    patterns = metadata.get(f"{part}.alpha_pattern") or {}
    if isinstance(patterns, dict):
        ends = (name for name in patterns if f".{layer}".endswith(f".{name.lstrip('^')}"))
        alpha = patterns.get(next(ends, None), alpha)
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise ValueError(f"its {_METADATA} gives no number as alpha of {where}")
    return float(alpha) / (math.sqrt(rank) if metadata.get(f"{part}.use_rslora") else rank)
