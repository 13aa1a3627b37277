"""From finished latents to images, in chunks small enough not to stall the denoising."""

from typing import Final

import torch
from PIL import Image

from worker.engine.pipeline import ResidentPipeline
from worker.engine.request import SampleKey
from worker.engine.sample import NonFiniteError, Sample

# Pixels decoded per tick: many thumbnails, or one large image.
PIXEL_BUDGET: Final = 512 * 512


class DecodeQueue:
    """Denoised samples that wait for the VAE, first come, first served.

    Args:
        pixel_budget: Most pixels of one chunk; an image larger than that is a chunk of its own.
    """

    def __init__(self, pixel_budget: int = PIXEL_BUDGET) -> None:
        self._pixel_budget = pixel_budget
        self._samples: dict[SampleKey, Sample] = {}

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
        del self._samples[sample.key]

    def next_chunk(self) -> list[Sample]:
        """Take out the oldest sample and as many of its shape as the budget has room for."""
        if not self._samples:
            return []
        first = next(iter(self._samples.values()))
        most = max(1, self._pixel_budget // (first.request.width * first.request.height))
        chunk = [s for s in self._samples.values() if s.shape == first.shape][:most]
        for sample in chunk:
            self.remove(sample)
        return chunk


def decode(pipeline: ResidentPipeline, chunk: list[Sample]) -> list[Image.Image | Exception]:
    """Decode samples of one shape: for each an RGB image or the reason why there is none."""
    try:
        return _decode_together(pipeline, chunk)
    except Exception as error:
        if len(chunk) == 1:
            return [error]
    # One of them spoils the call: alone, it fails alone.
    return [result for sample in chunk for result in decode(pipeline, [sample])]


def _decode_together(
    pipeline: ResidentPipeline, chunk: list[Sample]
) -> list[Image.Image | Exception]:
    images = pipeline.decode(torch.cat([sample.latents for sample in chunk]))
    finite = torch.isfinite(images).flatten(1).all(1).tolist()
    # As diffusers' image processor does it: [-1, 1] to [0, 1], then 8 bits, half to even.
    pixels = images.mul(0.5).add(0.5).clamp(0, 1).float().mul(255).round().to(torch.uint8)
    arrays = pixels.permute(0, 2, 3, 1).contiguous().cpu().numpy()
    return [
        Image.fromarray(array) if ok else NonFiniteError("the decoded image holds NaN or infinity")
        for array, ok in zip(arrays, finite, strict=True)
    ]
