"""Train, export and evaluate everything: ``python -m distill.train``.

Phase 1 trains the autoencoder, phase 2 the U-Net with its text encoders on cached latents, and
phase 3 the decoder alone.  Every phase resumes from its checkpoint in ``--runs``.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from diffusers import AutoencoderKL
from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging

from distill import parallel
from distill import train_unet as train_unet_phase
from distill import train_vae as train_vae_phase
from distill.card import model_card
from distill.checkpoint import Budget, TrainState
from distill.evaluate import evaluate, evaluation_scenes, validate
from distill.export import MODEL_DIR, export
from distill.latents import build_pool, scaling_factor
from distill.model import Denoiser, caption_tokenizer
from distill.painters import PipelinePainter
from distill.progress import Reporter
from distill.samples import PROMPTS, sheet
from distill.train_unet import train_unet
from distill.train_vae import psnr, train_autoencoder, train_decoder

RUNS: Final = Path(__file__).with_name("runs")
EVALUATE_COMMAND: Final = "python -m distill.evaluate"


@dataclass(frozen=True, slots=True)
class Plan:
    """Minutes of training per phase, and minutes between exports of the U-Net phase."""

    autoencoder: float = 17.0
    unet: float = 84.0
    decoder: float = 8.0
    export_every: float = 10.0


def _exporter(
    vae: AutoencoderKL, every: float, report: Reporter, folder: Path
) -> Callable[[TrainState[Denoiser]], bool]:
    tokenizer = caption_tokenizer()
    last = time.monotonic()

    def on_step(state: TrainState[Denoiser]) -> bool:
        nonlocal last
        if parallel.rank() == 0 and time.monotonic() - last >= every * 60:
            export(vae, state.average.module, tokenizer, folder)
            report.say(f"exported {folder} at step {state.step}")
            last = time.monotonic()
        return False

    return on_step


def train(
    plan: Plan, runs: Path, folder: Path, report: Reporter, note: str = ""
) -> dict[str, Any] | None:
    """Run or resume all phases and export to ``folder``; ``note`` goes into the model card.

    Returns the metrics in the first process, and None in the others.
    """
    first, workers = parallel.rank() == 0, parallel.workers()
    tokenizer = caption_tokenizer()
    paths = {name: runs / f"{name}.pt" for name in ("autoencoder", "latents", "unet", "decoder")}

    vae = train_autoencoder(
        paths["autoencoder"],
        Budget(seconds=plan.autoencoder * 60),
        report,
        batch=train_vae_phase.BATCH // workers,
    ).eval()
    pool = build_pool(vae, paths["latents"], report)
    scale = scaling_factor(pool)
    vae.register_to_config(scaling_factor=scale)
    if first:
        first_psnr = psnr(vae, evaluation_scenes())
        report.say(f"autoencoder: {first_psnr:.2f} dB, scaling factor {scale:.4f}")
    if first and not paths["unet"].is_file():
        export(vae, Denoiser(tokenizer), tokenizer, folder)

    denoiser = train_unet(
        pool,
        scale,
        tokenizer,
        paths["unet"],
        Budget(seconds=plan.unet * 60),
        report,
        batch=train_unet_phase.BATCH // workers,
        on_step=_exporter(vae, plan.export_every, report, folder),
    ).eval()
    if first:
        export(vae, denoiser, tokenizer, folder)

    vae = train_decoder(
        vae,
        paths["decoder"],
        Budget(seconds=plan.decoder * 60),
        report,
        batch=train_vae_phase.BATCH // workers,
    ).eval()
    if not first:
        return None
    export(vae, denoiser, tokenizer, folder)
    report.say("evaluating")
    metrics = measure(vae, denoiser, paths, folder, round(first_psnr, 2))
    metrics["training"]["note"] = note
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(model_card(metrics), encoding="utf-8")
    return metrics


def measure(
    vae: AutoencoderKL,
    denoiser: Denoiser,
    paths: Mapping[str, Path],
    folder: Path,
    first_psnr: float,
) -> dict[str, Any]:
    """Evaluate the exported ``folder``, write its sample sheet, and return all figures."""
    scenes = evaluation_scenes()
    painter = PipelinePainter.load(folder)
    sheet(painter(PROMPTS, range(len(PROMPTS))), PROMPTS).save(folder / "samples.png")
    states = {
        name: torch.load(paths[name], weights_only=True)
        for name in ("autoencoder", "unet", "decoder")
    }
    return {
        "command": EVALUATE_COMMAND,
        "settings": {"num_inference_steps": 10, "guidance_scale": 3.5, "size": "64x64"},
        "evaluation": evaluate(painter, scenes),
        "validation": validate(painter.pipeline.vae, scenes),
        "autoencoder_psnr_db": {
            "before_decoder_tuning": first_psnr,
            "final": round(psnr(vae, scenes), 2),
        },
        "training": {
            "optimizer_steps": {name: state["step"] for name, state in states.items()},
            "minutes": {name: round(state["elapsed"] / 60, 1) for name, state in states.items()},
            "parameters": {
                "vae": _count(vae),
                "unet": _count(denoiser.unet),
                "text_encoders": _count(denoiser) - _count(denoiser.unet),
            },
        },
    }


def _count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def worker(rank: int, workers: int, port: int, args: argparse.Namespace) -> None:
    """Train as process ``rank`` of ``workers``."""
    torch.set_num_threads(max(1, args.threads // workers))
    for library in (diffusers_logging, transformers_logging):
        library.set_verbosity_error()
        library.disable_progress_bar()
    plan = Plan(args.vae_minutes, args.unet_minutes, args.decoder_minutes, args.export_minutes)
    parallel.join(rank, workers, port)
    try:
        with Reporter(quiet=rank != 0) as report:
            metrics = train(plan, args.runs, args.out, report, args.note)
    finally:
        parallel.leave()
    if metrics is not None:
        shown = {k: v for k, v in metrics["evaluation"].items() if k != "wrong"}
        print(json.dumps(shown, indent=2))


def main() -> None:
    """Parse the command line and train."""
    plan = Plan()
    cores = os.cpu_count() or 1
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vae-minutes", type=float, default=plan.autoencoder)
    parser.add_argument("--unet-minutes", type=float, default=plan.unet)
    parser.add_argument("--decoder-minutes", type=float, default=plan.decoder)
    parser.add_argument("--export-minutes", type=float, default=plan.export_every)
    parser.add_argument("--runs", type=Path, default=RUNS, help="folder of checkpoints")
    parser.add_argument("--out", type=Path, default=MODEL_DIR, help="pipeline folder")
    parser.add_argument("--threads", type=int, default=cores, help="cores to use in all")
    parser.add_argument(
        "--workers", type=int, default=min(4, cores), help="processes that share each batch"
    )
    parser.add_argument("--note", default="", help="a remark on this run, for the model card")
    args = parser.parse_args()
    if not 1 <= args.workers <= 16 or train_vae_phase.BATCH % args.workers:
        parser.error("--workers must be 1, 2, 4, 8 or 16")
    port = parallel.free_port()
    # spawn starts clean interpreters: a forked one inherits OpenMP's dead threads.
    context = multiprocessing.get_context("spawn")
    for rank in range(1, args.workers):
        # Daemons end with this process, which is the first of the workers.
        context.Process(target=worker, args=(rank, args.workers, port, args), daemon=True).start()
    worker(0, args.workers, port, args)


if __name__ == "__main__":
    main()
