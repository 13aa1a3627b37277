"""Decodes a large image tile by tile, so that no tick takes long and memory stays small."""

from collections.abc import Iterator
from typing import Final

import torch

from worker.engine.decode import decode_pixels
from worker.engine.pipeline import ResidentPipeline

# Neighbouring tiles share this part of their side, over which one fades into the other: a decoder
# sees less far into a tile than into the whole image, so edges would show.
_OVERLAP: Final = 0.25

# Latents of a side below which tiles are all edge.
SMALLEST_TILE: Final = 16


class TiledDecode:
    """The decoding of one image under way.

    Args:
        pipeline: Decodes.
        latents: (1, C, h, w).
        side: Latents of a tile's side.
    """

    def __init__(self, pipeline: ResidentPipeline, latents: torch.Tensor, side: int) -> None:
        self._pipeline = pipeline
        self._latents = latents
        self.side = side
        height, width = latents.shape[2:]
        self._left = [(top, left) for top in _starts(height, side) for left in _starts(width, side)]
        self._canvas: tuple[torch.Tensor, torch.Tensor] | None = None

    @property
    def tiles_left(self) -> int:
        """Tiles not decoded yet."""
        return len(self._left)

    def advance(self) -> tuple[torch.Tensor | None, int]:
        """Decode one more tile.

        Returns:
            The pixels (1, 3, H, W) once it was the last one, and how many tiles (0 or 1) were
            decoded again in fp32.
        """
        top, left = self._left[0]
        latents = self._latents[:, :, top : top + self.side, left : left + self.side]
        pixels, upcasts = decode_pixels(self._pipeline, latents)
        pixels = pixels.float()
        scale = self._pipeline.vae_scale_factor
        weight = self._fade(top, left, *latents.shape[2:])
        place = (
            slice(None),
            slice(None),
            slice(top * scale, top * scale + pixels.shape[2]),
            slice(left * scale, left * scale + pixels.shape[3]),
        )
        pixel_sum, weight_sum = self._canvas or self._blank()
        pixel_sum[place] += pixels * weight
        weight_sum[place] += weight
        del self._left[0]
        return (None if self._left else pixel_sum / weight_sum), upcasts

    def _blank(self) -> tuple[torch.Tensor, torch.Tensor]:
        height, width = (side * self._pipeline.vae_scale_factor for side in self._latents.shape[2:])
        pixel_sum = torch.zeros(1, 3, height, width, device=self._latents.device)
        self._canvas = pixel_sum, torch.zeros_like(pixel_sum[:, :1])
        return self._canvas

    def _fade(self, top: int, left: int, height: int, width: int) -> torch.Tensor:
        """How much each pixel of a tile counts: all, but less and less towards shared edges."""
        full_height, full_width = self._latents.shape[2:]
        down = self._ramp(height, top > 0, top + height < full_height)
        across = self._ramp(width, left > 0, left + width < full_width)
        return down.view(1, 1, -1, 1) * across.view(1, 1, 1, -1)

    def _ramp(self, length: int, fades_in: bool, fades_out: bool) -> torch.Tensor:
        scale = self._pipeline.vae_scale_factor
        weight = torch.ones(length * scale, device=self._latents.device)
        fade = min(_overlap(self.side), length) * scale
        rising = (torch.arange(fade, device=weight.device) + 0.5) / fade
        if fades_in:
            weight[:fade] *= rising
        if fades_out:
            weight[-fade:] *= rising.flip(0)
        return weight


def _overlap(side: int) -> int:
    return max(1, int(side * _OVERLAP))


def _starts(length: int, side: int) -> Iterator[int]:
    """Where tiles begin along a side; the last one ends where the side ends."""
    start = 0
    while start + side < length:
        yield start
        start += side - _overlap(side)
    yield max(0, length - side)
