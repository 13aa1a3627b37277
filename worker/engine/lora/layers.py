"""The layers that a LoRA can add to, by what their inputs and outputs are."""

import math
from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True, slots=True)
class Layer:
    """A linear layer or a convolution.

    Args:
        inputs: Features or channels.
        outputs: Features or channels.
        kernel: (kh, kw) of a convolution; empty for a linear layer.
    """

    inputs: int
    outputs: int
    kernel: tuple[int, ...] = ()

    @property
    def numbers(self) -> int:
        """Numbers of its own weight."""
        return self.inputs * self.outputs * math.prod(self.kernel)

    def down_shape(self, rank: int) -> tuple[int, ...]:
        """The shape of the matrix that goes from the inputs to ``rank`` features."""
        return rank, self.inputs, *self.kernel

    def up_shape(self, rank: int) -> tuple[int, ...]:
        """The shape of the matrix that goes from ``rank`` features to the outputs."""
        return self.outputs, rank, *(1 for _ in self.kernel)


def layers_of(model: nn.Module) -> dict[str, Layer]:
    """The layers of ``model`` by their path."""
    layers = {}
    for path, module in model.named_modules():
        if isinstance(module, nn.Linear):
            layers[path] = Layer(module.in_features, module.out_features)
        elif isinstance(module, nn.Conv2d) and module.groups == 1:
            kernel = tuple(module.kernel_size)
            layers[path] = Layer(module.in_channels, module.out_channels, kernel)
    return layers
