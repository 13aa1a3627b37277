"""Things that turn prompts into pictures, for the evaluator: a pipeline and a server."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, Protocol, Self

import httpx
import numpy as np
import torch
from diffusers import AutoencoderKL, StableDiffusionXLPipeline
from PIL import Image

from distill.export import load_pipeline
from distill.glyphs import FloatArray
from distill.scenes import Scene
from distill.train_vae import to_tensor

IN_FLIGHT: Final = 16
TIMEOUT_SECONDS: Final = 120.0


class Painter(Protocol):
    """Draws one (64, 64, 3) picture in 0..1 per prompt and seed."""

    def __call__(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[FloatArray]: ...


def to_array(image: Image.Image) -> FloatArray:
    """(height, width, 3) sRGB in 0..1."""
    return np.asarray(image.convert("RGB"), np.float32) / 255.0


@dataclass(frozen=True, slots=True)
class PipelinePainter:
    """Draws with a diffusers pipeline, in batches."""

    pipeline: StableDiffusionXLPipeline
    steps: int = 10
    guidance: float = 3.5
    batch: int = 16

    @classmethod
    def load(cls, folder: Path, steps: int = 10, guidance: float = 3.5) -> Self:
        """Load an exported folder."""
        return cls(load_pipeline(folder), steps, guidance)

    def __call__(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[FloatArray]:
        pictures: list[FloatArray] = []
        for start in range(0, len(prompts), self.batch):
            part = slice(start, start + self.batch)
            images = self.pipeline(
                list(prompts[part]),
                num_inference_steps=self.steps,
                guidance_scale=self.guidance,
                generator=[torch.Generator().manual_seed(seed) for seed in seeds[part]],
            ).images
            pictures += [to_array(image) for image in images]
        return pictures


@dataclass(frozen=True, slots=True)
class ServerPainter:
    """Draws through ``POST {url}/v1/images/generations``, ``IN_FLIGHT`` requests at a time."""

    url: str
    steps: int = 10
    guidance: float = 3.5

    def __call__(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[FloatArray]:
        limits = httpx.Limits(max_connections=IN_FLIGHT)
        with (
            httpx.Client(base_url=self.url, timeout=TIMEOUT_SECONDS, limits=limits) as client,
            ThreadPoolExecutor(IN_FLIGHT) as pool,
        ):
            return list(pool.map(partial(self._draw, client), prompts, seeds))

    def _draw(self, client: httpx.Client, prompt: str, seed: int) -> FloatArray:
        response = client.post(
            "/v1/images/generations",
            json={
                "prompt": prompt,
                "size": "64x64",
                "n": 1,
                "seed": seed,
                "num_inference_steps": self.steps,
                "guidance_scale": self.guidance,
                "response_format": "b64_json",
            },
        )
        if response.is_error:
            raise RuntimeError(f"{self.url} answered {response.status_code}: {response.text[:500]}")
        data = base64.b64decode(response.json()["data"][0]["b64_json"])
        return to_array(Image.open(io.BytesIO(data)))


@dataclass(frozen=True, slots=True)
class RoundTripPainter:
    """Encodes and decodes exact renders: the best the autoencoder allows."""

    vae: AutoencoderKL

    @torch.no_grad()
    def __call__(self, scenes: Sequence[Scene]) -> list[FloatArray]:
        pictures: list[FloatArray] = []
        for start in range(0, len(scenes), 64):
            latents = self.vae.encode(to_tensor(list(scenes[start : start + 64])))
            decoded = self.vae.decode(latents.latent_dist.mode()).sample
            array = (decoded.clamp(-1, 1) / 2 + 0.5).permute(0, 2, 3, 1).numpy()
            pictures += list(array)
        return pictures
