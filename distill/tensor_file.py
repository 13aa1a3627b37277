"""Writes a safetensors file one tensor at a time; the library's own writer wants all at once."""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import torch

_NAMES: Final = {torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32"}


def write_tensors(
    path: Path,
    shapes: Mapping[str, tuple[int, ...]],
    dtype: torch.dtype,
    value: Callable[[str, tuple[int, ...]], torch.Tensor],
) -> None:
    """Write a file of tensors that do not exist yet.

    Args:
        path: The file.
        shapes: Shape of each tensor by its name.
        dtype: Of all of them; ``float16``, ``bfloat16`` or ``float32``.
        value: Makes a tensor from its name and shape; it is cast to ``dtype``.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + math.prod(shape) * dtype.itemsize
        entry = {"dtype": _NAMES[dtype], "shape": shape, "data_offsets": (start, end)}
        header[name] = entry
    text = json.dumps(header).encode()
    # Readers map the file, so the numbers should begin at a multiple of their size.
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for name, shape in shapes.items():
            tensor = value(name, shape).to(dtype).contiguous()
            file.write(tensor.view(-1).view(torch.uint8).numpy().data)
