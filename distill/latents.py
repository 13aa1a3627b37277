"""The pool of encoded scenes that the U-Net trains on."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Final

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from distill import parallel
from distill.checkpoint import save_atomically
from distill.glyphs import NAMES
from distill.progress import Reporter
from distill.scenes import COLOURS, CORNERS, PAIRS, SIZES, SQUARE, Scene, sample_scene
from distill.train_vae import to_tensor

# Shares of centred, corner and paired scenes in a batch.  Pairs get more than their share of
# likely prompts, because they are what the model finds hardest.
KIND_SHARE: Final = (0.31, 0.07, 0.62)
ENCODE_BATCH: Final = 64


@dataclass(frozen=True, slots=True)
class Bucket:
    """Encoded scenes of one picture size.

    Attributes:
        scenes: the scenes, ordered by kind.
        kinds: index ranges of the centred, corner and paired scenes in ``scenes``.
        mean: posterior means, (N, 4, h, w) float16, unscaled.
        std: posterior standard deviations, same shape.
    """

    scenes: list[Scene]
    kinds: tuple[range, range, range]
    mean: Tensor
    std: Tensor

    def sample(self, rng: np.random.Generator, batch: int) -> list[int]:
        """Draw ``batch`` indices with the kinds' shares."""
        kinds = rng.choice(3, size=batch, p=KIND_SHARE)
        return [int(rng.choice(np.asarray(self.kinds[kind]))) for kind in kinds]


def list_scenes(
    size: tuple[int, int], pairs: int, seed: int
) -> tuple[list[Scene], tuple[range, range, range]]:
    """Every centred and corner scene of a size, and ``pairs`` random pairs."""
    rng = np.random.default_rng(seed)
    scenes = [Scene((n,), "centre", c, size) for n, c in product(NAMES, COLOURS)]
    centred = len(scenes)
    scenes += [Scene((n,), k, c, size) for n, k, c in product(NAMES, CORNERS, COLOURS)]
    corners = len(scenes)
    while len(scenes) < corners + pairs:
        scene = sample_scene(rng, size, 0.9)
        if scene.layout in PAIRS:
            scenes.append(scene)
    return scenes, (range(centred), range(centred, corners), range(corners, len(scenes)))


@torch.no_grad()
def encode(
    vae: AutoencoderKL, scenes: list[Scene], report: Reporter, phase: str = "latents"
) -> tuple[Tensor, Tensor]:
    """Posterior means and standard deviations of scenes of one size, float16."""
    means, stds = [], []
    for start in range(0, len(scenes), ENCODE_BATCH):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            images = to_tensor(scenes[start : start + ENCODE_BATCH])
            posterior = vae.encode(images).latent_dist
        means.append(posterior.mean.half())
        stds.append(posterior.std.half())
        report.update(phase, start, start / len(scenes), 0.0)
    return torch.cat(means), torch.cat(stds)


def build_pool(
    vae: AutoencoderKL, cache: Path, report: Reporter, *, pairs: int = 16_000
) -> list[Bucket]:
    """Encode the pool, one bucket per entry of ``SIZES``, or read it from ``cache``.

    ``pairs`` square pairs are drawn, and a quarter as many wide and tall ones.
    """
    listed = [
        list_scenes(size, pairs if size == SQUARE else pairs // 4, seed)
        for seed, size in enumerate(SIZES)
    ]
    if parallel.rank() == 0 and not cache.is_file():
        vae.eval()
        fresh = {}
        for i, (scenes, _) in enumerate(listed):
            fresh[f"mean{i}"], fresh[f"std{i}"] = encode(
                vae, scenes, report, f"latents of size {i + 1}"
            )
        save_atomically(fresh, cache)
    parallel.wait_for_all()
    stored = torch.load(cache, weights_only=True)
    return [
        Bucket(scenes, kinds, stored[f"mean{i}"], stored[f"std{i}"])
        for i, (scenes, kinds) in enumerate(listed)
    ]


def scaling_factor(pool: list[Bucket]) -> float:
    """1 / standard deviation of the square latents (Rombach et al. 2022, appendix G)."""
    return 1.0 / float(pool[0].mean.float().std())
