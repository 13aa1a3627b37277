"""The raw limit: U-Net calls and VAE decodes at the best batch, with nothing around them.

No HTTP, no scheduler, no guidance arithmetic, no noise, no text encoder, no encoding of images: no
server of this model can be faster. As a process (``python -m bench.raw_limit``) it measures its
curve, prints it as JSON, and then answers each line ``[images, unet_rows]`` with seconds.
"""

import json
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, cast

import torch
import typer
from diffusers import StableDiffusionXLPipeline
from diffusers.utils import logging as diffusers_logging

from bench.results import CurvePoint
from bench.workloads import SIDE
from koala.catalogue import DEMO_FOLDER

BATCHES: Final = (1, 2, 4, 8, 16, 24, 32, 64)
_REPEATS: Final = 3


@dataclass(frozen=True, slots=True)
class Batches:
    """The best sizes: rows of a U-Net call and images of a decoder call."""

    unet_rows: int
    images: int

    @classmethod
    def best(cls, curve: Iterable[CurvePoint]) -> "Batches":
        """The sizes that take least time per row and per image."""
        points = list(curve)
        return cls(
            min(points, key=lambda point: point.unet_row_ms).batch,
            min(points, key=lambda point: point.decode_image_ms).batch,
        )


@dataclass(slots=True)
class Work:
    """What a pass of the loop did."""

    unet_calls: list[int] = field(default_factory=list)
    decode_calls: list[int] = field(default_factory=list)


class RawLoop:
    """The bare model.

    Args:
        folder: A diffusers folder.
    """

    def __init__(self, folder: Path) -> None:
        cast(Any, diffusers_logging).disable_progress_bar()
        pipeline = cast(Any, StableDiffusionXLPipeline).from_pretrained(folder, dtype=torch.float32)
        self._unet, self._vae = pipeline.unet.eval(), pipeline.vae.eval()
        side = SIDE // pipeline.vae_scale_factor
        rows = max(BATCHES)
        embeds, _, pooled, _ = pipeline.encode_prompt("a koala on a blue background")
        self._latents = torch.randn(rows, self._unet.config.in_channels, side, side)
        self._embeds = embeds.expand(rows, -1, -1).contiguous()
        self._pooled = pooled.expand(rows, -1).contiguous()
        self._time_ids = torch.tensor([[SIDE, SIDE, 0, 0, SIDE, SIDE]] * rows)
        self._timesteps = torch.linspace(999, 1, rows)

    def curve(self) -> list[CurvePoint]:
        """Time per row and per image over batch sizes: the best of some repeats each."""
        self._unet_call(max(BATCHES))
        return [
            CurvePoint(
                batch=batch,
                unet_row_ms=1000 * self._best_seconds(self._unet_call, batch) / batch,
                decode_image_ms=1000 * self._best_seconds(self._decode_call, batch) / batch,
            )
            for batch in BATCHES
        ]

    def run(self, images: int, unet_rows: int, batches: Batches) -> tuple[float, Work]:
        """Do the work that ``images`` images need; the seconds it took, and what was done.

        Args:
            images: Images to decode.
            unet_rows: Rows that all their steps take, steps times rows summed.
            batches: Sizes of the calls. Only the last call of a kind may be smaller.
        """
        work = Work(_split(unet_rows, batches.unet_rows), _split(images, batches.images))
        start = time.perf_counter()
        for rows in work.unet_calls:
            self._unet_call(rows)
        for count in work.decode_calls:
            self._decode_call(count)
        return time.perf_counter() - start, work

    @torch.inference_mode()
    def _unet_call(self, rows: int) -> None:
        self._unet(
            self._latents[:rows],
            self._timesteps[:rows],
            encoder_hidden_states=self._embeds[:rows],
            added_cond_kwargs={
                "text_embeds": self._pooled[:rows],
                "time_ids": self._time_ids[:rows],
            },
            return_dict=False,
        )

    @torch.inference_mode()
    def _decode_call(self, images: int) -> None:
        self._vae.decode(self._latents[:images], return_dict=False)

    def _best_seconds(self, call: Any, batch: int) -> float:
        def seconds() -> float:
            start = time.perf_counter()
            call(batch)
            return time.perf_counter() - start

        return min(seconds() for _ in range(_REPEATS))


def _split(total: int, most: int) -> list[int]:
    return [most] * (total // most) + ([total % most] if total % most else [])


def main(threads: int) -> None:
    """Answer on stdout what stdin asks for, a line each."""
    torch.set_num_threads(threads)
    loop = RawLoop(DEMO_FOLDER)
    curve = loop.curve()
    print(json.dumps([point.model_dump() for point in curve]), flush=True)
    batches = Batches.best(curve)
    for line in sys.stdin:
        images, unet_rows = json.loads(line)
        seconds, _ = loop.run(images, unet_rows, batches)
        print(json.dumps(seconds), flush=True)


if __name__ == "__main__":
    typer.run(main)
