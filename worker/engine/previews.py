"""Previews: what a sample would be if it were finished now."""

import time
from collections.abc import Sequence
from typing import Final

import torch
from PIL import Image

from worker.engine.decode import to_images
from worker.engine.memory import is_fatal
from worker.engine.pipeline import ResidentPipeline
from worker.engine.sample import Sample

# Of the engine's time, previews by the decoder may take this part.
_SHARE: Final = 0.02
# What may be saved up while nobody asks: a person who watches one image gets real pixels.
_MOST_SAVED_SECONDS: Final = 0.5
# Above so many latent squares the decoder is out of the question.
_LARGEST_DECODED: Final = 64 * 64


class Previewer:
    """Draws previews: by the decoder while that is cheap, else by the linear map.

    Args:
        pipeline: The model.
    """

    def __init__(self, pipeline: ResidentPipeline) -> None:
        self._pipeline = pipeline
        self._saved = _MOST_SAVED_SECONDS
        # Seconds that the decoder takes for one square of latents, as last seen.
        self._pace = 0.0

    def earn(self, seconds: float) -> None:
        """Note that the engine worked for so long."""
        self._saved = min(_MOST_SAVED_SECONDS, self._saved + _SHARE * seconds)

    def draw(self, samples: Sequence[Sample]) -> list[tuple[Sample, Image.Image]]:
        """Previews of samples that have a prediction of their end.

        A preview that cannot be drawn is left out: nothing depends on it.

        Args:
            samples: Any, of one shape.
        """
        predicted = [(s, s.predicted) for s in samples if s.predicted is not None]
        if not predicted:
            return []
        latents = torch.cat([prediction for _, prediction in predicted])
        try:
            images = self._images(latents)
        except Exception as error:
            if is_fatal(error):
                raise
            return []
        return [(sample, image) for (sample, _), image in zip(predicted, images, strict=False)]

    def _images(self, latents: torch.Tensor) -> Sequence[Image.Image]:
        projection = self._pipeline.projection
        squares = latents.shape[0] * latents.shape[2] * latents.shape[3]
        small = latents.shape[2] * latents.shape[3] <= _LARGEST_DECODED
        if small and self._pace * squares <= self._saved:
            began = time.perf_counter()
            drawn = to_images(self._pipeline.decode(latents))
            images = [image for image in drawn if not isinstance(image, Exception)]
            spent = time.perf_counter() - began
            self._pace = spent / squares
            self._saved -= spent
            return images if len(images) == len(latents) else []
        return projection.draw(latents) if projection.is_known else []
