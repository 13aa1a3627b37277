"""``koala plan``: what a model takes on a card that one need not have."""

import json
from dataclasses import asdict
from typing import Any

from rich.console import Console

from worker.batching import LADDER
from worker.engine.residency import Residency
from worker.planning import table
from worker.planning.options import Options, Question
from worker.planning.pace import images_per_minute


def run(options: Options, wants_json: bool, console: Console) -> None:
    """Plan and print.

    Raises:
        OptionError: An option cannot be used; the message names it.
    """
    question = options.question()
    if wants_json:
        console.print_json(json.dumps(as_json(question)))
    else:
        table.show(question, console)


def as_json(question: Question) -> dict[str, Any]:
    """The plan for other programs; sizes in bytes."""
    plan, forecast = question.plan, question.plan.forecast
    return {
        "model": question.model.id,
        "size": "{}x{}".format(*plan.size),
        "dtype": question.dtype,
        "attention": question.attention,
        "vram": question.vram,
        "context": plan.context,
        "weights": {
            "unet": forecast.unet_bytes(),
            "unet_fp8": forecast.unet_bytes(narrow=True),
            "vae": forecast.vae_bytes,
            "text_encoders": forecast.text_bytes,
        },
        "encode": asdict(forecast.encode),
        "steps": {rows: asdict(forecast.step(plan.size, rows)) for rows in LADDER},
        "decode": {
            "whole": asdict(forecast.decode(plan.size, 1)),
            "tiled": asdict(forecast.decode_tiled(plan.size)),
            "tile_side": forecast.tile_side,
        },
        "chosen": plan.choose(question.vram),
        "residencies": {residency: _residency(question, residency) for residency in Residency},
        "notes": list(table.notes(question)),
    }


def _residency(question: Question, residency: Residency) -> dict[str, Any]:
    plan = question.plan
    most = plan.most_rows(residency, question.vram)
    return {
        "weights": plan.weights(residency),
        "least": plan.least(residency),
        "peak": plan.peak(residency),
        "max_rows": most,
        "images_per_minute": {
            profile.card: {
                rows: round(images_per_minute(profile, plan.size, rows), 2)
                for rows in LADDER
                if rows <= most
            }
            for profile in question.profiles
        },
    }
