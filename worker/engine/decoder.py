"""The decoder's queue: at most one chunk a tick, smaller and smaller where memory is short."""

import math
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from PIL import Image

from worker.batching import LARGEST_WHOLE, PIXEL_BUDGET, Pressure, Size, images_per_chunk
from worker.engine.capacity import Capacity
from worker.engine.decode import decode_pixels, to_images
from worker.engine.memory import DoesNotFit, is_fatal, is_out_of_memory
from worker.engine.pipeline import ResidentPipeline
from worker.engine.request import SampleKey
from worker.engine.sample import Sample
from worker.engine.tiles import SMALLEST_TILE, TiledDecode

Drawn: TypeAlias = Image.Image | Exception


@dataclass(slots=True)
class DecodeTick:
    """What came of a tick.

    Args:
        drawn: The images that are done, or why there is none.
        images: Images that a decoder call was made for.
        upcasts: Images decoded again in fp32.
        ran_out: Whether memory ran out; nothing is lost then.
    """

    drawn: list[tuple[Sample, Drawn]] = field(default_factory=list)
    images: int = 0
    upcasts: int = 0
    ran_out: bool = False


class Decoder:
    """Denoised samples that wait for the VAE, first come, first served.

    Memory that runs out halves a chunk; a single image is then decoded by tiles, these by smaller
    ones, and only what does not fit by the smallest fails.

    Args:
        pipeline: Decodes.
        capacity: Knows what memory there is.
        pixel_budget: Most pixels of one chunk; an image larger than that is a chunk of its own.
        largest_whole: Pixels above which an image is decoded by tiles.
    """

    def __init__(
        self,
        pipeline: ResidentPipeline,
        capacity: Capacity,
        pixel_budget: int = PIXEL_BUDGET,
        largest_whole: int = LARGEST_WHOLE,
    ) -> None:
        self._pipeline = pipeline
        self._capacity = capacity
        self._pixel_budget = pixel_budget
        self._largest_whole = largest_whole
        self._samples: dict[SampleKey, Sample] = {}
        self._pressure: Pressure[Size] = Pressure()
        # Of the first sample only: it keeps its place until its last tile is done.
        self._tiling: TiledDecode | None = None
        # The sample that ran out of memory last, alone and at its smallest.
        self._short: Sample | None = None

    def __len__(self) -> int:
        return len(self._samples)

    def __contains__(self, sample: Sample) -> bool:
        return sample.key in self._samples

    def add(self, sample: Sample) -> None:
        """Queue a denoised sample."""
        self._samples[sample.key] = sample

    def remove(self, sample: Sample) -> None:
        """Take ``sample`` out.

        Raises:
            KeyError: It is not in the queue.
        """
        if sample is next(iter(self._samples.values()), None):
            self._tiling = None
        if sample is self._short:
            self._short = None
        del self._samples[sample.key]

    def tick(self) -> DecodeTick:
        """Decode the next chunk, or the next tile."""
        if not self._samples:
            return DecodeTick()
        first = next(iter(self._samples.values()))
        if self._tiling is None and self._wants_tiles(first):
            self._tiling = TiledDecode(self._pipeline, first.latents, self._default_side())
        return self._next_tile(first) if self._tiling else self._next_chunk(first)

    # Whole images

    def _next_chunk(self, first: Sample) -> DecodeTick:
        chunk = self._chunk(first)
        tick = DecodeTick(images=len(chunk))
        try:
            latents = torch.cat([sample.latents for sample in chunk])
            pixels, tick.upcasts = decode_pixels(self._pipeline, latents)
            self._finish(tick, chunk, to_images(pixels))
            self._pressure.went_well(first.size)
            return tick
        except Exception as error:
            if is_fatal(error):
                raise
            tick.ran_out = is_out_of_memory(error)
            failure = error.with_traceback(None)
        if tick.ran_out:
            # The chunk is still in the queue.
            self._capacity.ran_out_elsewhere()
            self._pressure.ran_out(first.size, len(chunk))
            if len(chunk) == 1:
                self._tile(first, min(self._default_side(), _longest(first) // 2), tick)
        elif len(chunk) == 1:
            self._finish(tick, chunk, [failure])
        else:
            # One of them spoils the call: alone, it fails alone.
            for sample in chunk:
                drawn = self._alone(sample)
                if isinstance(drawn, Exception) and is_out_of_memory(drawn):
                    # It keeps its place, and its turn comes again.
                    tick.ran_out = True
                    self._capacity.ran_out_elsewhere()
                else:
                    self._finish(tick, [sample], [drawn])
        return tick

    def _chunk(self, first: Sample) -> list[Sample]:
        most = images_per_chunk(first.size, self._pixel_budget)
        limit = self._pressure.limit(first.size)
        most = most if limit is None else min(most, limit)
        return [sample for sample in self._samples.values() if sample.size == first.size][:most]

    def _alone(self, sample: Sample) -> Drawn:
        try:
            pixels, _ = decode_pixels(self._pipeline, sample.latents)
            return to_images(pixels)[0]
        except Exception as error:
            if is_fatal(error):
                raise
            return error.with_traceback(None)

    # Tiles

    def _wants_tiles(self, sample: Sample) -> bool:
        if _longest(sample) <= self._default_side():
            return False
        width, height = sample.size
        return (
            self._pipeline.residency.tiles_vae
            or width * height > self._largest_whole
            or not self._capacity.decode_fits(sample.size)
        )

    def _default_side(self) -> int:
        """Latents of the side of a tile that fills the budget."""
        return max(SMALLEST_TILE, math.isqrt(self._pixel_budget) // self._pipeline.vae_scale_factor)

    def _tile(self, sample: Sample, side: int, tick: DecodeTick) -> None:
        """Begin to decode ``sample`` by tiles of ``side`` latents.

        Where these would be too small it is tried once more as it is, and then fails.
        """
        if side >= SMALLEST_TILE:
            self._tiling = TiledDecode(self._pipeline, sample.latents, side)
        elif self._short is not sample:
            self._short = sample
        else:
            width, height = sample.size
            needed, free = self._capacity.decode_needs(sample.size), self._capacity.available
            error = DoesNotFit(f"The decoding of {width}x{height} px", needed, free)
            self._finish(tick, [sample], [error])

    def _next_tile(self, sample: Sample) -> DecodeTick:
        assert self._tiling is not None
        tick = DecodeTick(images=1)
        try:
            pixels, tick.upcasts = self._tiling.advance()
            if pixels is not None:
                self._finish(tick, [sample], to_images(pixels))
            return tick
        except Exception as error:
            if is_fatal(error):
                raise
            tick.ran_out = is_out_of_memory(error)
            failure = error.with_traceback(None)
        side, self._tiling = self._tiling.side, None
        if tick.ran_out:
            self._capacity.ran_out_elsewhere()
            self._tile(sample, side // 2, tick)
        else:
            self._finish(tick, [sample], [failure])
        return tick

    def _finish(self, tick: DecodeTick, chunk: list[Sample], drawn: list[Drawn]) -> None:
        for sample, result in zip(chunk, drawn, strict=True):
            self.remove(sample)
            tick.drawn.append((sample, result))


def _longest(sample: Sample) -> int:
    return max(sample.latents.shape[2:])
