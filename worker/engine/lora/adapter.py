"""A LoRA in memory, read as its blueprint says."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import BinaryIO

import torch

from koala.lora import LoraError, stamp_of
from koala.tensor_file import TensorEntry
from worker.engine.lora.blueprint import DTYPES, Blueprint
from worker.engine.lora.names import Part


class FileChanged(Exception):
    """A file was replaced or written to since its header was read."""


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

    def to(self, device: torch.device) -> "Adapter":
        """It, on ``device``."""
        parts = {
            part: {
                layer: LayerDelta(delta.down.to(device), delta.up.to(device), delta.scale)
                for layer, delta in deltas.items()
            }
            for part, deltas in self.parts.items()
        }
        return Adapter(self.name, self.stamp, parts)


def read_adapter(blueprint: Blueprint, dtype: torch.dtype) -> Adapter:
    """Read the numbers of a LoRA into the host's memory.

    The file is read, not mapped: one that is cut meanwhile would end the process.

    Raises:
        FileChanged: The file is no longer the one that the blueprint is of.
        LoraError: It cannot be read, or holds what is no number.
    """
    file = blueprint.file
    parts: dict[Part, dict[str, LayerDelta]] = {}
    try:
        with file.path.open("rb") as opened:
            _check_stamp(blueprint, opened)
            for plan in blueprint.layers:
                down = _read(opened, plan.down, plan.down_key).to(dtype)
                up = _read(opened, plan.up, plan.up_key).to(dtype)
                scale = plan.scale
                if plan.alpha is not None:
                    scale = float(_read(opened, plan.alpha, plan.alpha_key)) / plan.rank
                parts.setdefault(plan.part, {})[plan.layer] = LayerDelta(down, up, scale)
            _check_stamp(blueprint, opened)
    except FileNotFoundError:
        raise FileChanged(file.name) from None
    except OSError as error:
        raise LoraError.unusable(file.name, error.strerror) from None
    except ValueError as error:
        raise LoraError.unusable(file.name, error) from None
    return Adapter(file.name, file.stamp, parts)


def _check_stamp(blueprint: Blueprint, opened: BinaryIO) -> None:
    file = blueprint.file
    if stamp_of(file.name, os.fstat(opened.fileno())) != file.stamp:
        raise FileChanged(file.name)


def _read(opened: BinaryIO, entry: TensorEntry, key: str) -> torch.Tensor:
    data = bytearray(entry.end - entry.begin)
    opened.seek(entry.begin)
    if opened.readinto(data) < len(data):  # type: ignore[attr-defined]
        raise FileChanged(key)
    tensor = torch.frombuffer(data, dtype=DTYPES[entry.dtype]).reshape(entry.shape)
    if not bool(torch.isfinite(tensor.float()).all()):
        raise ValueError(f"{key} holds NaN or infinity")
    return tensor
