"""What each phase of drawing takes at its peak, from running the worker's calls without memory."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Final

import torch

from worker.batching import LARGEST_WHOLE, PIXEL_BUDGET, Size
from worker.batching.sizes import pixels_of
from worker.engine.tiles import SMALLEST_TILE, TiledDecode
from worker.planning.architecture import Architecture
from worker.planning.attention import Attention
from worker.planning.liveness import FixedAttention, LiveBytes
from worker.planning.twin import Twin

# A guided image's prompts: its own and the negative one.
_PROMPTS: Final = ("", "")
# Every tensor of a call has its rows as first dimension or does not depend on them, so the peak is
# a straight line, and two points give it. Below two rows PyTorch takes other paths now and then.
_FEW_ROWS: Final = 2
_MORE_ROWS: Final = 4


@dataclass(frozen=True, slots=True)
class Need:
    """What a call takes beyond the weights, in bytes.

    Args:
        activations: Of live tensors at their peak.
        workspace: Allowance for what is not seen: kernels' workspace, of which convolutions take
            up to a copy of what they work on, and the gaps between the allocator's blocks. As
            large as the largest tensor of the call.
    """

    activations: int
    workspace: int

    @property
    def total(self) -> int:
        """Both."""
        return self.activations + self.workspace


class Forecast:
    """A model in one number format.

    Args:
        architecture: How the model is built.
        dtype: Number format.
        attention: Which kernel computes the attention.

    Raises:
        UnknownArchitecture: Its configs make no model.
    """

    def __init__(
        self,
        architecture: Architecture,
        dtype: torch.dtype,
        attention: Attention = Attention.FUSED,
    ) -> None:
        self._twin = Twin(architecture, dtype)
        self._architecture = architecture
        self._attention = attention
        # What was asked for before is asked for again.
        self.step = lru_cache(self._step)
        self.decode = lru_cache(self._decode)
        self.decode_tiled = lru_cache(self._decode_tiled)

    @property
    def vae_bytes(self) -> int:
        """Bytes of the VAE's weights, in the number format it decodes in."""
        return self._twin.vae_bytes

    @property
    def text_bytes(self) -> int:
        """Bytes of the text encoders' weights."""
        return self._twin.text_bytes

    def unet_bytes(self, narrow: bool = False) -> int:
        """Bytes of the U-Net's weights; ``narrow``: stored in 8 bits."""
        return self._unet_twin(narrow).unet_bytes

    @property
    def tile_side(self) -> int:
        """Pixels of a tile's side."""
        return self._tile_latents * self._twin.vae_scale_factor

    @cached_property
    def encode(self) -> Need:
        """Encoding the prompts of one guided image."""
        return self._run(self._twin, lambda: self._twin.encode_prompts(list(_PROMPTS)))

    def decode_resident(self, size: Size, by_tiles: bool) -> Need:
        """Decoding one image as the worker does it: one above a certain size by tiles anyway."""
        if by_tiles or pixels_of(size) > LARGEST_WHOLE:
            return self.decode_tiled(size)
        return self.decode(size, 1)

    def _step(self, size: Size, rows: int, narrow: bool = False) -> Need:
        """A U-Net call of ``rows`` rows."""
        if rows <= _FEW_ROWS or rows == _MORE_ROWS:
            return self._step_as_run(size, rows, narrow)
        few = self.step(size, _FEW_ROWS, narrow)
        more = self.step(size, _MORE_ROWS, narrow)
        share = (rows - _FEW_ROWS) / (_MORE_ROWS - _FEW_ROWS)
        return Need(
            few.activations + int(share * (more.activations - few.activations)),
            few.workspace + int(share * (more.workspace - few.workspace)),
        )

    def _step_as_run(self, size: Size, rows: int, narrow: bool) -> Need:
        twin = self._unet_twin(narrow)

        def call() -> object:
            embeds, pooled = twin.blank_conditioning(rows)
            time_ids = torch.zeros(rows, 6, dtype=twin.dtype)
            latents = twin.blank_latents(size, rows)
            return twin.predict_noise(latents, torch.zeros(rows), embeds, pooled, time_ids)

        return self._run(twin, call)

    def _decode(self, size: Size, images: int) -> Need:
        """Decoding ``images`` images of ``size`` in one call."""
        return self._run(
            self._twin, lambda: self._twin.decode(self._twin.blank_latents(size, images))
        )

    def _decode_tiled(self, size: Size) -> Need:
        """Decoding one image of ``size`` by tiles."""

        def call() -> object:
            latents = self._twin.blank_latents(size, 1)
            decode = TiledDecode(self._twin, latents, self._tile_latents)
            pixels = None
            while decode.tiles_left:
                pixels, _ = decode.advance()
            return pixels

        return self._run(self._twin, call)

    @property
    def _tile_latents(self) -> int:
        return max(SMALLEST_TILE, math.isqrt(PIXEL_BUDGET) // self._twin.vae_scale_factor)

    def _unet_twin(self, narrow: bool) -> Twin:
        return self._narrow_twin if narrow else self._twin

    @cached_property
    def _narrow_twin(self) -> Twin:
        # Seldom asked for, and the slowest to build.
        return Twin(self._architecture, self._twin.dtype, narrow_unet=True)

    def _run(self, twin: Twin, call: Callable[[], object]) -> Need:
        with (
            torch.device("meta"),
            torch.no_grad(),
            FixedAttention(self._attention),
            LiveBytes(twin.tensors()) as memory,
        ):
            call()
        return Need(memory.peak, memory.largest)
