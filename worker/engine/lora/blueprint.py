"""What a LoRA's header promises, checked against the model before any of its numbers is read."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import torch

from koala.lora import LoraError, LoraFile
from koala.tensor_file import TensorEntry, TensorHeader
from worker.engine.lora.layers import Layer
from worker.engine.lora.names import Names, Part, Place, Role

Layers: TypeAlias = Mapping[Part, Mapping[str, Layer]]

# The number formats of matrices, by what safetensors calls them.
DTYPES: Final = {
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}

_METADATA: Final = "lora_adapter_metadata"
# Keys that a message tells of.
_TOLD: Final = 3


@dataclass(frozen=True, slots=True)
class LayerPlan:
    """Where the matrices of one layer are.

    Args:
        part: The part of the model.
        layer: The layer's path in it.
        down: The first matrix.
        down_key: Its key.
        up: The second one.
        up_key: Its key.
        alpha: The number that scales both, if the file has one.
        alpha_key: Its key.
        scale: What scales them otherwise.
    """

    part: Part
    layer: str
    down: TensorEntry
    down_key: str
    up: TensorEntry
    up_key: str
    alpha: TensorEntry | None
    alpha_key: str
    scale: float

    @property
    def rank(self) -> int:
        """The features between the two matrices."""
        return self.down.shape[0]


@dataclass(frozen=True, slots=True)
class Blueprint:
    """A file that fits the model, by its header.

    Args:
        file: The file.
        layers: What to read of it.
    """

    file: LoraFile
    layers: tuple[LayerPlan, ...]


def draw_up(file: LoraFile, layers: Layers, names: Names) -> Blueprint:
    """Read the header of ``file`` and check it against the model's ``layers``.

    Raises:
        LoraError: The file cannot be read, or is for another model or of another kind.
    """
    header = file.header()
    try:
        return Blueprint(file, tuple(_plans(header, layers, names)))
    # Numbers in JSON can be too large for a float.
    except (ValueError, OverflowError) as error:
        raise LoraError.unusable(file.name, error) from None


def _plans(header: TensorHeader, layers: Layers, names: Names) -> list[LayerPlan]:
    metadata = _metadata(header)
    places = names.places(header.tensors)
    _refuse_unknown([key for key, place in places.items() if place is None])
    keys: dict[tuple[Part, str], dict[Role, str]] = {}
    for key, place in places.items():
        assert place is not None
        _put(keys, place, key, header.tensors[key])
    plans = [
        _plan(part, path, found, layers[part][path], header, metadata)
        for (part, path), found in keys.items()
    ]
    numbers = sum(plan.down.numbers + plan.up.numbers for plan in plans)
    most = sum(layer.numbers for part in layers.values() for layer in part.values())
    if numbers > most:
        raise ValueError(
            f"it has {numbers} numbers and the layers that it could change {most}: that is no "
            "low-rank adapter"
        )
    return plans


def _metadata(header: TensorHeader) -> dict[str, Any]:
    try:
        metadata = json.loads(header.metadata.get(_METADATA, "{}"))
    except (json.JSONDecodeError, RecursionError):
        raise ValueError(f"its {_METADATA} is not JSON") from None
    if not isinstance(metadata, dict):
        raise ValueError(f"its {_METADATA} is no object")
    return metadata


def _refuse_unknown(keys: list[str]) -> None:
    if keys:
        more = f" and {len(keys) - _TOLD} more" if len(keys) > _TOLD else ""
        raise ValueError(
            "it is for another model or of a kind that is not supported (DoRA, LoHa, LoKr); these "
            f"keys fit no layer: {', '.join(sorted(keys)[:_TOLD])}{more}"
        )


def _put(
    keys: dict[tuple[Part, str], dict[Role, str]], place: Place, key: str, entry: TensorEntry
) -> None:
    if entry.dtype not in DTYPES:
        raise ValueError(f"{key} is of the number format {entry.dtype}, not {', '.join(DTYPES)}")
    roles = keys.setdefault((place.part, place.layer), {})
    if place.role in roles:
        raise ValueError(f"{key} is for a layer that another key is for too")
    roles[place.role] = key


def _plan(
    part: Part,
    path: str,
    keys: dict[Role, str],
    layer: Layer,
    header: TensorHeader,
    metadata: dict[str, Any],
) -> LayerPlan:
    where = f"{part}.{path}"
    if "down" not in keys or "up" not in keys:
        raise ValueError(f"{where} has only one of its two matrices")
    down, up = header.tensors[keys["down"]], header.tensors[keys["up"]]
    rank = down.shape[0] if down.shape else 0
    wanted = layer.down_shape(rank), layer.up_shape(rank)
    if rank == 0 or (down.shape, up.shape) != wanted:
        raise ValueError(
            f"{where} has the shapes {down.shape} and {up.shape}, the model's layer "
            f"wants {wanted[0]} and {wanted[1]}"
        )
    alpha = header.tensors[keys["alpha"]] if "alpha" in keys else None
    if alpha is not None and alpha.numbers != 1:
        raise ValueError(f"{where} has more than one alpha")
    scale = 1.0 if alpha is not None else _told_scale(where, rank, metadata)
    return LayerPlan(
        part, path, down, keys["down"], up, keys["up"], alpha, keys.get("alpha", ""), scale
    )


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
