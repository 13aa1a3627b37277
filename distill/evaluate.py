"""Measure prompt adherence: ``python -m distill.evaluate`` [--url http://127.0.0.1:8000].

Every glyph is asked for alone on two backgrounds, once in a corner, and once as the first of a
pair, which is described both ways round.  Pictures are read back by ``distill.matching`` and
compared with what was asked.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from diffusers import AutoencoderKL

from distill.captions import plain_caption, reversed_caption
from distill.export import MODEL_DIR
from distill.glyphs import NAMES, FloatArray
from distill.matching import MAX_RMSE, read
from distill.painters import Painter, PipelinePainter, RoundTripPainter, ServerPainter
from distill.scenes import COLOURS, CORNERS, PAIRS, Scene, render

TARGETS: Final = {"single": 0.97, "background": 0.99, "pair_objects": 0.85}


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was asked, what was read, and the root mean squared error (0..1) of the reading."""

    asked: Scene
    got: Scene
    rmse: float

    @property
    def close(self) -> bool:
        """Whether the picture resembles its nearest scene at all."""
        return self.rmse <= MAX_RMSE

    @property
    def objects(self) -> bool:
        """The right glyphs, wherever they stand."""
        return self.close and sorted(self.asked.glyphs) == sorted(self.got.glyphs)

    @property
    def placed(self) -> bool:
        """The right glyphs in the right places."""
        return (
            self.close
            and self.asked.glyphs == self.got.glyphs
            and self.asked.layout == self.got.layout
        )

    @property
    def background(self) -> bool:
        """The right background."""
        return self.close and self.asked.background == self.got.background


def evaluation_scenes(names: Sequence[str] = NAMES, seed: int = 7) -> list[Scene]:
    """Two centred scenes, one corner and one pair for each of ``names``.

    Raises:
        ValueError: a name is not in the glyph table.
    """
    if unknown := set(names) - set(NAMES):
        raise ValueError(f"unknown glyph names: {sorted(unknown)}")
    rng = np.random.default_rng(seed)
    scenes = []
    for i, name in enumerate(names):
        colours = [COLOURS[c] for c in rng.permutation(len(COLOURS))]
        scenes += [Scene((name,), "centre", colour) for colour in colours[:2]]
        scenes.append(Scene((name,), CORNERS[rng.integers(len(CORNERS))], colours[2]))
        other = rng.choice([n for n in NAMES if n != name])
        scenes.append(Scene((name, str(other)), PAIRS[i % 2], colours[3]))
    return scenes


def judge(scenes: Sequence[Scene], pictures: Sequence[FloatArray]) -> list[Verdict]:
    """Read every picture back."""
    readings = [read(picture) for picture in pictures]
    return [Verdict(scene, got, rmse) for scene, (got, rmse) in zip(scenes, readings, strict=True)]


def summarise(verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """Fractions of right answers, and a list of the wrong ones."""
    singles = [v for v in verdicts if v.asked.layout == "centre"]
    pairs = [v for v in verdicts if v.asked.layout in PAIRS]
    corners = [v for v in verdicts if v.asked.layout in CORNERS]
    return {
        "pictures": len(verdicts),
        "single": _share([v.placed for v in singles]),
        "corner": _share([v.placed for v in corners]),
        "pair_objects": _share([v.objects for v in pairs]),
        "pair_order": _share([v.placed for v in pairs]),
        "background": _share([v.background for v in verdicts]),
        "everything": _share([v.placed and v.background for v in verdicts]),
        "mean_rmse": round(float(np.mean([v.rmse for v in verdicts])), 4),
        "wrong": [
            {"prompt": plain_caption(v.asked), "read_as": plain_caption(v.got), "rmse": v.rmse}
            for v in verdicts
            if not (v.placed and v.background)
        ],
    }


def _share(right: Sequence[bool]) -> float | None:
    return round(sum(right) / len(right), 4) if right else None


def evaluate(painter: Painter, scenes: Sequence[Scene], seed: int = 1000) -> dict[str, Any]:
    """Paint, read back and summarise ``scenes``; scene ``i`` is painted with ``seed + i``.

    Pairs are asked for a second time with the right or lower object mentioned first.
    """
    prompts = [plain_caption(scene) for scene in scenes]
    result = summarise(judge(scenes, painter(prompts, range(seed, seed + len(prompts)))))
    pairs = [scene for scene in scenes if scene.layout in PAIRS]
    prompts = [reversed_caption(scene) for scene in pairs]
    backwards = judge(pairs, painter(prompts, range(seed, seed + len(prompts))))
    result["pair_objects_reversed"] = _share([v.objects for v in backwards])
    result["pair_order_reversed"] = _share([v.placed for v in backwards])
    return result


def validate(vae: AutoencoderKL, scenes: Sequence[Scene]) -> dict[str, Any]:
    """Check the reading itself, on exact renders and on autoencoder round trips."""
    return {
        "renders": summarise(judge(scenes, [render(scene) for scene in scenes])),
        "round_trips": summarise(judge(scenes, RoundTripPainter(vae)(scenes))),
    }


def main() -> None:
    """Evaluate the exported folder, or a server, and print or write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=MODEL_DIR, help="pipeline folder")
    parser.add_argument("--url", help="evaluate the server at this address instead")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--guidance", type=float, default=3.5)
    parser.add_argument("--seed", type=int, default=1000)
    parser.add_argument("--glyphs", type=int, default=len(NAMES), help="only the first N glyphs")
    parser.add_argument("--out", type=Path, help="write the JSON here")
    args = parser.parse_args()
    if not 1 <= args.glyphs <= len(NAMES):
        parser.error(f"--glyphs must be 1..{len(NAMES)}")
    painter: Painter = (
        ServerPainter(args.url, args.steps, args.guidance)
        if args.url
        else PipelinePainter.load(args.model, args.steps, args.guidance)
    )
    result = evaluate(painter, evaluation_scenes(NAMES[: args.glyphs]), args.seed)
    result |= {"steps": args.steps, "guidance_scale": args.guidance, "seed": args.seed}
    result["targets_met"] = all((result[key] or 0.0) >= goal for key, goal in TARGETS.items())
    text = json.dumps(result, indent=2)
    if args.out:
        args.out.write_text(text + "\n", encoding="utf-8")
        del result["wrong"]
        text = json.dumps(result, indent=2)
    print(text)


if __name__ == "__main__":
    main()
