"""LoRAs of a call, row by row: each layer's output gets what the rows' own LoRAs add.

y[r] = W x[r] + sum over the LoRAs i of row r of weight[r, i] * scale_i * B_i (A_i x[r]), after
S-LoRA (https://arxiv.org/abs/2311.03285). The weights W are never touched, and rows without a LoRA
keep the very numbers that the layer gave.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.nn import functional

from worker.engine.lora.adapter import Adapter, LayerDelta
from worker.engine.lora.names import Part


@dataclass(frozen=True, slots=True)
class AppliedLora:
    """A LoRA and the weight it is used with."""

    adapter: Adapter
    weight: float


@dataclass(frozen=True, slots=True)
class _Share:
    """The rows (k,) that use an adapter, and the weights (k,) they use it with."""

    adapter: Adapter
    rows: torch.Tensor
    weights: torch.Tensor


_Job: TypeAlias = tuple[_Share, LayerDelta]


class RowLoras:
    """Which LoRAs the rows of a call have.

    Args:
        rows: Those of each row.
        device: Where the call runs.
    """

    def __init__(self, rows: Sequence[Sequence[AppliedLora]], device: torch.device) -> None:
        self._rows = rows
        self._device = device
        users: dict[Adapter, list[tuple[int, float]]] = {}
        for row, loras in enumerate(rows):
            for lora in loras:
                users.setdefault(lora.adapter, []).append((row, lora.weight))
        self._shares = [
            _Share(
                adapter,
                torch.tensor([row for row, _ in uses], device=device),
                torch.tensor([weight for _, weight in uses], device=device),
            )
            for adapter, uses in users.items()
        ]

    def part_of(self, rows: slice) -> "RowLoras":
        """The LoRAs of some of the rows."""
        return RowLoras(self._rows[rows], self._device)

    @contextmanager
    def applied(self, part: Part, model: nn.Module) -> Iterator[bool]:
        """Let the layers of ``model`` add the LoRAs inside the context; whether there are any."""
        jobs: dict[str, list[_Job]] = {}
        for share in self._shares:
            for layer, delta in share.adapter.parts.get(part, {}).items():
                jobs.setdefault(layer, []).append((share, delta))
        with ExitStack() as stack:
            for layer, of_layer in jobs.items():
                handle = model.get_submodule(layer).register_forward_hook(_Adding(of_layer))
                stack.callback(handle.remove)
            yield bool(jobs)


class _Adding:
    """A forward hook that adds to some rows of a layer's output."""

    def __init__(self, jobs: list[_Job]) -> None:
        self._jobs = jobs

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        for share, delta in self._jobs:
            added = _through(module, delta, inputs[0][share.rows])
            weights = (share.weights * delta.scale).view(-1, *(1 for _ in added.shape[1:]))
            output.index_add_(0, share.rows, (added * weights).to(output.dtype))


def _through(module: nn.Module, delta: LayerDelta, rows: torch.Tensor) -> torch.Tensor:
    if isinstance(module, nn.Conv2d):
        padding: Any = module.padding
        low = functional.conv2d(rows, delta.down, None, module.stride, padding, module.dilation)
        return functional.conv2d(low, delta.up)
    return functional.linear(functional.linear(rows, delta.down), delta.up)
