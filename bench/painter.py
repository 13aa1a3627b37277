"""diffusers' own pipeline behind a server of somebody else's: what both peers call."""

import base64
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import Any, cast

import torch
from diffusers import StableDiffusionXLPipeline
from diffusers.utils import logging as diffusers_logging
from PIL.Image import Image
from pydantic import BaseModel, ConfigDict

from bench.workloads import Request
from koala.catalogue import DEMO_FOLDER, resolve
from worker.images import ImageMetadata, encode_image


class Body(BaseModel):
    """A request as the benchmark sends it to every contender."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt: str
    seed: int
    num_inference_steps: int
    guidance_scale: float
    response_format: str

    def request(self) -> Request:
        """What is to be drawn."""
        return Request(self.prompt, self.seed, self.num_inference_steps, self.guidance_scale)


@dataclass(frozen=True, slots=True)
class Painting:
    """An image, and when its drawing began on ``time.monotonic``'s clock."""

    request: Request
    image: Image
    began: float

    def body(self) -> dict[str, Any]:
        """The answer: encoded as our own worker encodes, metadata included."""
        metadata = ImageMetadata(
            prompt=self.request.prompt,
            negative_prompt=None,
            seed=self.request.seed,
            steps=self.request.num_inference_steps,
            guidance_scale=self.request.guidance_scale,
            scheduler="EulerDiscreteScheduler",
            model="koala-demo",
            software="bench",
            width=self.image.width,
            height=self.image.height,
            created=datetime.now(UTC),
        )
        data = encode_image(self.image, "png", 100, metadata)
        return {
            "data": [{"b64_json": base64.b64encode(data).decode(), "seed": self.request.seed}],
            "timings": {"began_monotonic": self.began},
        }


class Painter:
    """Draws with ``StableDiffusionXLPipeline.__call__`` in fp32 on the CPU.

    Args:
        threads: CPU threads of torch.
        folder: A diffusers folder.
    """

    def __init__(self, threads: int, folder: Path = DEMO_FOLDER) -> None:
        torch.set_num_threads(threads)
        cast(Any, diffusers_logging).disable_progress_bar()
        pipeline = cast(Any, StableDiffusionXLPipeline).from_pretrained(
            folder, dtype=torch.float32, add_watermarker=False
        )
        pipeline.set_progress_bar_config(disable=True)
        pipeline.scheduler = type(pipeline.scheduler).from_config(
            pipeline.scheduler.config, **resolve("koala-demo").scheduler_overrides
        )
        self._pipeline = pipeline

    def paint(self, requests: Sequence[Request]) -> list[Painting]:
        """Draw all requests, in their order, with as few calls as the pipeline allows.

        One call has one number of steps and one guidance scale, so only requests that share both
        share a call. Without guidance the scale does not matter.
        """
        numbered = sorted(enumerate(requests), key=lambda each: _kind(each[1]))
        paintings: dict[int, Painting] = {}
        for _, members in groupby(numbered, key=lambda each: _kind(each[1])):
            places, group = zip(*members, strict=True)
            paintings.update(zip(places, self._call(group), strict=True))
        return [paintings[place] for place in range(len(requests))]

    def _call(self, group: Sequence[Request]) -> list[Painting]:
        began = time.monotonic()
        with torch.inference_mode():
            images = self._pipeline(
                [request.prompt for request in group],
                num_inference_steps=group[0].num_inference_steps,
                guidance_scale=group[0].guidance_scale,
                generator=[torch.Generator("cpu").manual_seed(request.seed) for request in group],
            ).images
        return [Painting(*each, began) for each in zip(group, images, strict=True)]


def _kind(request: Request) -> tuple[int, float]:
    return request.num_inference_steps, request.guidance_scale if request.is_guided else 0.0
