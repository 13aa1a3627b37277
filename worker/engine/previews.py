"""Previews: what a sample would be if it were finished now."""

import time
from collections.abc import Sequence
from typing import Final

import structlog
import torch
from PIL import Image

from worker.engine.decode import to_images
from worker.engine.memory import is_fatal
from worker.engine.pace import Pace
from worker.engine.pipeline import ResidentPipeline
from worker.engine.purse import Purse
from worker.engine.sample import Sample

log = structlog.get_logger()

# Of the engine's time, previews may take these parts: the tiny decoder one, and one whatever else
# is done for them, here and on their way to who watches.
_DECODER_SHARE: Final = 0.0075
_SHOWING_SHARE: Final = 0.0075
# What may be saved up while nobody asks: a person who watches a few images gets all of their
# previews, and the first ones by the decoder.
_MOST_FOR_DECODER: Final = 0.5
_MOST_FOR_SHOWING: Final = 0.1
# What goes wrong with one preview goes wrong with the next: one line tells of all.
COMPLAINT_SECONDS: Final = 60.0


class Previewer:
    """Draws previews: by the tiny decoder while that is cheap, else by the linear map, else none.

    Nothing depends on a preview: what goes wrong here is logged and counted.

    Args:
        pipeline: The model.
    """

    def __init__(self, pipeline: ResidentPipeline) -> None:
        self._pipeline = pipeline
        self._for_decoder = Purse(_DECODER_SHARE, _MOST_FOR_DECODER)
        self._for_showing = Purse(_SHOWING_SHARE, _MOST_FOR_SHOWING)
        self._pace = Pace()
        self._next_complaint = 0.0
        # Previews that could not be drawn, by the last call of `draw`.
        self.failed = 0

    def earn(self, seconds: float) -> None:
        """Note that the engine worked for so long."""
        self._for_decoder.earn(seconds)
        self._for_showing.earn(seconds)

    def charge(self, seconds: float) -> None:
        """Note that what was drawn took so long to show."""
        self._for_showing.spend(seconds)

    def draw(self, samples: Sequence[Sample]) -> list[tuple[Sample, Image.Image]]:
        """Previews of samples that have a prediction of their end.

        What cannot be drawn, or not be paid for, is left out.

        Args:
            samples: Any, of one shape.
        """
        self.failed = 0
        for sample in samples:
            if sample.prediction_error is not None:
                self._complain(sample.prediction_error, 1)
        predicted = [(s, s.predicted) for s in samples if s.predicted is not None]
        if not predicted or self._for_showing.is_empty:
            return []
        try:
            latents = torch.cat([prediction for _, prediction in predicted])
            images = self._decoded(latents) or self._projected(latents)
        except Exception as error:
            if is_fatal(error):
                raise
            self._complain(error, len(predicted))
            return []
        drawn = zip(predicted, images, strict=False)
        return [(sample, image) for (sample, _), image in drawn if image is not None]

    def _decoded(self, latents: torch.Tensor) -> list[Image.Image | None]:
        """Images of the first latents, as many as can be paid for; none where the map is due."""
        decoder = self._pipeline.tiny_decoder
        if decoder is None or self._for_decoder.is_empty:
            return []
        squares = latents.shape[2] * latents.shape[3]
        count = self._pace.affordable(self._for_decoder.saved, squares, len(latents))
        has_map = self._pipeline.projection is not None
        if count < len(latents) and (count == 0 or has_map):
            return []
        began = time.perf_counter()
        try:
            drawn = to_images(decoder.decode(latents[:count]))
        except Exception as error:
            if is_fatal(error):
                raise
            # It may well fail again: the next try has to be earned.
            self._for_decoder.empty()
            self._complain(error, 0 if has_map else count)
            return []
        spent = time.perf_counter() - began
        self._for_decoder.spend(spent)
        self._pace.note(spent, squares * count)
        bad = [image for image in drawn if isinstance(image, Exception)]
        if bad:
            self._complain(bad[0], len(bad))
        return [None if isinstance(image, Exception) else image for image in drawn]

    def _projected(self, latents: torch.Tensor) -> list[Image.Image]:
        projection = self._pipeline.projection
        if projection is None:
            return []
        began = time.perf_counter()
        images = projection.draw(latents)
        self._for_showing.spend(time.perf_counter() - began)
        return images

    def _complain(self, error: Exception, count: int) -> None:
        self.failed += count
        now = time.monotonic()
        if now >= self._next_complaint:
            self._next_complaint = now + COMPLAINT_SECONDS
            log.warning(
                "a preview cannot be drawn; the image itself goes on",
                exc_info=error,
                quiet_seconds=COMPLAINT_SECONDS,
            )
