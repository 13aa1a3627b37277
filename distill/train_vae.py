"""Phases 1 and 3: train the autoencoder, and later sharpen its decoder alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional as F
from torch.optim import AdamW

from distill.checkpoint import Budget, TrainState, learning_rate
from distill.model import build_vae
from distill.progress import Reporter
from distill.scenes import SIZE_SHARE, SIZES, Scene, render, sample_scene

BATCH: Final = 16
PEAK_LR: Final = 2e-3
KL_WEIGHT: Final = 1e-6
# More pairs than the U-Net sees: small glyphs hold the detail that is hardest to keep.
PAIR_SHARE: Final = 0.45
CHECKPOINT_STEPS: Final = 500


def to_tensor(scenes: list[Scene]) -> Tensor:
    """Render scenes of one size to (B, 3, H, W) in -1..1."""
    pixels = np.stack([render(scene) for scene in scenes])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous() * 2.0 - 1.0


def gradient_loss(output: Tensor, target: Tensor) -> Tensor:
    """Mean absolute difference of horizontal and vertical finite differences."""
    horizontal = (output - target).diff(dim=-1).abs().mean()
    vertical = (output - target).diff(dim=-2).abs().mean()
    return horizontal + vertical


def laplacian_loss(output: Tensor, target: Tensor, levels: int = 3) -> Tensor:
    """L1 between Laplacian pyramids (Bojanowski et al. 2018, eq. 4), finest level first.

    The pyramid is linear, so the difference image is decomposed once.
    """
    rest = output - target
    loss = rest.new_zeros(())
    for level in range(levels):
        coarse = F.avg_pool2d(rest, 2)
        band = rest - F.interpolate(coarse, scale_factor=2.0, mode="bilinear")
        loss = loss + 2.0**-level * band.abs().mean()
        rest = coarse
    return loss + rest.abs().mean()


def reconstruction_loss(output: Tensor, target: Tensor) -> Tensor:
    """L1, squared and gradient loss of the first phase.

    The squared term weighs the large errors, such as a glyph in the wrong colour.
    """
    return (
        (output - target).abs().mean()
        + F.mse_loss(output, target)
        + 0.5 * gradient_loss(output, target)
    )


def sharpening_loss(output: Tensor, target: Tensor) -> Tensor:
    """The decoder phase's loss: edges and fine bands weigh more."""
    return (
        (output - target).abs().mean()
        + 0.5 * F.mse_loss(output, target)
        + gradient_loss(output, target)
        + laplacian_loss(output, target)
    )


def train_autoencoder(
    checkpoint: Path,
    budget: Budget,
    report: Reporter,
    *,
    seed: int = 0,
    batch: int = BATCH,
    stop_at: Callable[[int], bool] = lambda step: False,
) -> AutoencoderKL:
    """Train encoder and decoder with L1, gradient and a slight KL loss.

    ``stop_at`` ends the run early after a checkpoint, as an interruption would.
    """
    torch.manual_seed(seed)
    vae = build_vae()
    state = TrainState(vae, AdamW(vae.parameters(), lr=PEAK_LR, weight_decay=1e-4), seed)
    state.load(checkpoint)

    def loss_of(images: Tensor, generator: torch.Generator) -> Tensor:
        posterior = vae.encode(images).latent_dist
        with torch.autocast("cpu", enabled=False):
            noise = torch.randn(posterior.mean.shape, generator=generator)
            latents = posterior.mean.float() + posterior.std.float() * noise
            kl = posterior.kl().float().mean()
        output = vae.decode(latents).sample.float()
        loss: Tensor = reconstruction_loss(output, images) + KL_WEIGHT * kl
        return loss

    _loop(state, loss_of, checkpoint, budget, report, "autoencoder", PEAK_LR, batch, stop_at)
    averaged: AutoencoderKL = state.average.module
    return averaged


def train_decoder(
    vae: AutoencoderKL,
    checkpoint: Path,
    budget: Budget,
    report: Reporter,
    *,
    seed: int = 2,
    batch: int = BATCH,
) -> AutoencoderKL:
    """Fine-tune the decoder of ``vae`` in place, with the encoder frozen.

    The latents keep their meaning, so a U-Net trained on them stays valid.
    """
    vae.requires_grad_(False)
    trained = [*vae.decoder.parameters(), *vae.post_quant_conv.parameters()]
    for parameter in trained:
        parameter.requires_grad_(True)
    state = TrainState(vae, AdamW(trained, lr=PEAK_LR / 2, weight_decay=0.0), seed)
    state.load(checkpoint)

    def loss_of(images: Tensor, generator: torch.Generator) -> Tensor:
        with torch.no_grad():
            latents = vae.encode(images).latent_dist.mean.float()
            # Sampled latents are never exact; a little noise makes the decoder tolerate that.
            jitter = torch.randn(latents.shape, generator=generator)
            latents = latents + DECODER_JITTER * jitter / vae.config.scaling_factor
        return sharpening_loss(vae.decode(latents).sample.float(), images)

    _loop(state, loss_of, checkpoint, budget, report, "decoder", PEAK_LR / 2, batch)
    averaged: AutoencoderKL = state.average.module
    return averaged


DECODER_JITTER: Final = 0.03


def _loop(
    state: TrainState[AutoencoderKL],
    loss_of: Callable[[Tensor, torch.Generator], Tensor],
    checkpoint: Path,
    budget: Budget,
    report: Reporter,
    phase: str,
    peak: float,
    batch: int,
    stop_at: Callable[[int], bool] = lambda step: False,
) -> None:
    state.start_clock()
    while (fraction := budget.fraction(state.step, state.elapsed)) < 1.0:
        size = SIZES[state.shared_rng().choice(len(SIZES), p=SIZE_SHARE)]
        rng, generator = state.own_rng()
        images = to_tensor([sample_scene(rng, size, PAIR_SHARE) for _ in range(batch)])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = loss_of(images, generator)
        state.advance(loss, learning_rate(peak, state.step, fraction, hold=0.3))
        report.update(phase, state.step, fraction, loss.item())
        stopping = stop_at(state.step)
        if stopping or state.step % CHECKPOINT_STEPS == 0:
            state.save(checkpoint)
            if stopping:
                return
    state.save(checkpoint)


@torch.no_grad()
def psnr(vae: AutoencoderKL, scenes: list[Scene]) -> float:
    """Peak signal-to-noise ratio in dB of round trips, over 0..1 pixels of equal-size scenes."""
    error = 0.0
    for start in range(0, len(scenes), 64):
        images = to_tensor(scenes[start : start + 64])
        output = vae.decode(vae.encode(images).latent_dist.mode()).sample.clamp(-1, 1)
        error += float(((output - images) / 2).square().mean((1, 2, 3)).sum())
    return float(-10 * np.log10(error / len(scenes)))
