"""Phase 2: train the U-Net and both text encoders on cached latents."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor
from torch.optim import AdamW
from transformers import CLIPTokenizer

from distill.captions import sample_caption
from distill.checkpoint import Budget, TrainState, learning_rate
from distill.latents import Bucket
from distill.model import Conditioning, Denoiser, build_scheduler
from distill.progress import Reporter
from distill.scenes import SIZE_SHARE

BATCH: Final = 64
PEAK_LR: Final = 1e-3
MIN_SNR_GAMMA: Final = 5.0
# The pipeline's unconditional branch is all zeros without a negative prompt, and the encoded
# empty string with negative_prompt=""; each gets this share of the captions.
DROP_TO_ZEROS: Final = 0.05
DROP_TO_EMPTY: Final = 0.05
CHECKPOINT_STEPS: Final = 250


def min_snr_weight(alphas_cumprod: Tensor, gamma: float = MIN_SNR_GAMMA) -> Tensor:
    """Loss weight per timestep for noise prediction: min(SNR, gamma) / SNR.

    Hang et al. 2023, "Efficient Diffusion Training via Min-SNR Weighting Strategy".
    """
    snr = alphas_cumprod / (1.0 - alphas_cumprod)
    return snr.clamp(max=gamma) / snr


def stratified_timesteps(batch: int, total: int, generator: torch.Generator) -> Tensor:
    """One uniform timestep per equal slice of 0..``total`` - 1, in random order."""
    offsets = torch.rand(batch, generator=generator)
    slots = torch.randperm(batch, generator=generator)
    return ((slots + offsets) * (total / batch)).long().clamp(max=total - 1)


def zero_dropped(conditioning: Conditioning, dropped: Tensor) -> Conditioning:
    """Zero the text of the samples where ``dropped`` (B,) is true, as the pipeline does."""
    kept = (~dropped).float()
    return Conditioning(
        conditioning.sequence * kept[:, None, None],
        conditioning.pooled * kept[:, None],
        conditioning.time_ids,
    )


class UNetTrainer:
    """Draws batches and computes the training loss."""

    def __init__(
        self, denoiser: Denoiser, tokenizer: CLIPTokenizer, pool: list[Bucket], scale: float
    ) -> None:
        self.denoiser = denoiser
        self.tokenizer = tokenizer
        self.pool = pool
        self.scale = scale
        self.alphas: Tensor = build_scheduler().alphas_cumprod.float()
        self.weights = min_snr_weight(self.alphas)

    def loss(self, state: TrainState[Denoiser], batch: int) -> Tensor:
        """Min-SNR weighted error of the predicted noise on one random batch."""
        # Processes draw the same size, or the ones with small pictures would wait for the rest.
        bucket = self.pool[state.shared_rng().choice(len(self.pool), p=SIZE_SHARE)]
        rng, generator = state.own_rng()
        indices = bucket.sample(rng, batch)
        captions = self._captions(bucket, indices, rng)
        token_ids = self.tokenizer(captions, padding="max_length", return_tensors="pt").input_ids

        mean, std = bucket.mean[indices].float(), bucket.std[indices].float()
        latents = self.scale * (mean + std * torch.randn(mean.shape, generator=generator))
        noise = torch.randn(mean.shape, generator=generator)
        timesteps = stratified_timesteps(batch, len(self.alphas), generator)
        alpha = self.alphas[timesteps][:, None, None, None]
        noisy = alpha.sqrt() * latents + (1.0 - alpha).sqrt() * noise
        dropped = torch.rand(batch, generator=generator) < DROP_TO_ZEROS

        with torch.autocast("cpu", dtype=torch.bfloat16):
            conditioning = self.denoiser.encode(token_ids, bucket.scenes[0].size)
            predicted = self.denoiser(noisy, timesteps, zero_dropped(conditioning, dropped))
        error = (predicted.float() - noise).square().mean((1, 2, 3))
        loss: Tensor = (error * self.weights[timesteps]).mean()
        return loss

    def _captions(self, bucket: Bucket, indices: list[int], rng: np.random.Generator) -> list[str]:
        empty = rng.random(len(indices)) < DROP_TO_EMPTY
        return [
            "" if drop else sample_caption(bucket.scenes[i], rng)
            for i, drop in zip(indices, empty, strict=True)
        ]


def train_unet(
    pool: list[Bucket],
    scale: float,
    tokenizer: CLIPTokenizer,
    checkpoint: Path,
    budget: Budget,
    report: Reporter,
    *,
    seed: int = 1,
    batch: int = BATCH,
    peak: float = PEAK_LR,
    on_step: Callable[[TrainState[Denoiser]], bool] = lambda state: False,
) -> Denoiser:
    """Train until the budget is used up and return the averaged weights.

    Args:
        pool: encoded scenes, from ``latents.build_pool``.
        scale: the autoencoder's scaling factor.
        tokenizer: the caption tokenizer.
        checkpoint: where to resume from, if it exists, and to save to.
        budget: steps or seconds.
        report: where progress is shown.
        seed: of the weights and of every random draw.
        batch: scenes per step of this process.
        peak: highest learning rate.
        on_step: called after every step; true saves a checkpoint and stops early.
    """
    torch.manual_seed(seed)
    denoiser = Denoiser(tokenizer)
    # Attention dropout is zero in both configs, so train() and eval() compute the same.
    denoiser.train()
    optimizer = AdamW(denoiser.parameters(), lr=peak, betas=(0.9, 0.99), weight_decay=0.01)
    state = TrainState(denoiser, optimizer, seed)
    state.load(checkpoint)
    trainer = UNetTrainer(denoiser, tokenizer, pool, scale)
    state.start_clock()
    while (fraction := budget.fraction(state.step, state.elapsed)) < 1.0:
        loss = trainer.loss(state, batch)
        state.advance(loss, learning_rate(peak, state.step, fraction))
        report.update("unet", state.step, fraction, loss.item())
        stopping = on_step(state)
        if stopping or state.step % CHECKPOINT_STEPS == 0:
            state.save(checkpoint)
            if stopping:
                break
        # An export in on_step is not training time.
        state.start_clock()
    state.save(checkpoint)
    return state.average.module
