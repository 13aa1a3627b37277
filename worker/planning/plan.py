"""From what a model needs and what a card has: where to keep the parts, and how large a batch."""

from dataclasses import dataclass
from typing import Final

import torch

from worker.batching import LADDER, Size
from worker.engine.memory import RESERVE_BYTES
from worker.engine.residency import Residency
from worker.planning.architecture import Architecture
from worker.planning.attention import Attention
from worker.planning.forecast import Forecast, Need

# What the CUDA context and the kernels loaded into it take; between 300 and 500 MiB are common.
CONTEXT_BYTES: Final = 384 * 2**20

# Of one guided image.
GUIDED_ROWS: Final = 2


@dataclass(frozen=True, slots=True)
class Phase:
    """One phase of drawing with one residency.

    Args:
        name: ``encode``, ``step`` or ``decode``.
        weights: Bytes of the weights that are on the device then.
        need: What it takes beyond them.
    """

    name: str
    weights: int
    need: Need

    @property
    def total(self) -> int:
        """Bytes in all."""
        return self.weights + self.need.total


class Plan:
    """A model at one size: what it takes with each residency.

    Args:
        architecture: How the model is built.
        size: Width and height in pixels.
        dtype: Number format.
        attention: Which kernel computes the attention.
        context: Bytes that are taken before anything is loaded.
        reserve: Bytes that have to stay free.

    Raises:
        UnknownArchitecture: Its configs make no model.
    """

    def __init__(
        self,
        architecture: Architecture,
        size: Size,
        dtype: torch.dtype,
        attention: Attention = Attention.FUSED,
        context: int = CONTEXT_BYTES,
        reserve: int = RESERVE_BYTES,
    ) -> None:
        self.size = size
        self.context = context
        self.reserve = reserve
        self.forecast = Forecast(architecture, dtype, attention)

    def weights(self, residency: Residency) -> int:
        """Bytes of the weights that stay on the device."""
        text = 0 if residency.offloads_text else self.forecast.text_bytes
        return self.forecast.unet_bytes(residency.narrows_unet) + self.forecast.vae_bytes + text

    def phases(self, residency: Residency, rows: int = GUIDED_ROWS) -> tuple[Phase, ...]:
        """The phases of drawing with U-Net calls of ``rows`` rows."""
        forecast, weights = self.forecast, self.weights(residency)
        visiting = forecast.text_bytes if residency.offloads_text else 0
        return (
            Phase("encode", weights + visiting, forecast.encode),
            Phase("step", weights, forecast.step(self.size, rows, residency.narrows_unet)),
            Phase("decode", weights, forecast.decode_resident(self.size, residency.tiles_vae)),
        )

    def peak(self, residency: Residency, rows: int = GUIDED_ROWS) -> int:
        """Bytes at the peak, context and allowances included."""
        return self.context + max(phase.total for phase in self.phases(residency, rows))

    def least(self, residency: Residency, rows: int = GUIDED_ROWS) -> int:
        """Bytes below which it cannot work: context, weights and live tensors."""
        phases = self.phases(residency, rows)
        return self.context + max(phase.weights + phase.need.activations for phase in phases)

    def most_rows(self, residency: Residency, vram: int) -> int:
        """Most rows of a U-Net call that fit into ``vram`` bytes, a reserve left; 0: not one.

        More than the largest batch that workers measure is never said.
        """
        return max((rows for rows in LADDER if self.fits(residency, vram, rows)), default=0)

    def fits(self, residency: Residency, vram: int, rows: int) -> bool:
        """Whether U-Net calls of ``rows`` rows fit into ``vram`` bytes, the reserve left."""
        return self.peak(residency, rows) + self.reserve <= vram

    def choose(self, vram: int) -> Residency | None:
        """The first residency with which a guided image fits into ``vram`` bytes in one call.

        Failing that, one with which it fits row by row; ``None`` if there is none either.
        """
        for least in (GUIDED_ROWS, 1):
            for residency in Residency:
                if self.fits(residency, vram, least):
                    return residency
        return None
