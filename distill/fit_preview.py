"""Fit the latent-to-RGB map of a checkpoint: ``python -m distill.fit_preview FOLDER``.

A worker learns the map from what it draws; one that finds it beside the checkpoint shows previews
of its first image already.
"""

import argparse
from pathlib import Path
from typing import Final

from worker.engine import Engine, Failed, ResidentPipeline, SampleRequest
from worker.engine.projection import FILE_NAME, Projection

_SUBJECTS: Final = ("koala", "banana", "cat", "house", "rose", "fish", "car", "apple")
_COLOURS: Final = ("red", "blue", "green", "white", "black", "yellow", "purple", "orange")


def fit(pipeline: ResidentPipeline, images: int, steps: int) -> Projection:
    """Draw ``images`` images of many colours and learn from them.

    Raises:
        RuntimeError: One could not be drawn.
    """
    pipeline.projection = projection = Projection()
    engine = Engine(pipeline, max_rows=16)
    for i in range(images):
        subject, colour = _SUBJECTS[i % len(_SUBJECTS)], _COLOURS[i // len(_SUBJECTS) % 8]
        engine.add(
            SampleRequest(
                key=i,
                prompt=f"a {subject} on a {colour} background",
                negative_prompt=None,
                width=pipeline.native_side,
                height=pipeline.native_side,
                num_inference_steps=steps,
                guidance_scale=3.5,
                seed=i,
            )
        )
    while not engine.is_idle:
        for event in engine.step():
            if isinstance(event, Failed):
                raise RuntimeError("an image could not be drawn") from event.error
    return projection


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="a diffusers folder; gets the file")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--steps", type=int, default=10)
    arguments = parser.parse_args()
    pipeline = ResidentPipeline.load(arguments.folder)
    fit(pipeline, arguments.images, arguments.steps).save(arguments.folder)
    print(f"wrote {arguments.folder / FILE_NAME}")


if __name__ == "__main__":
    main()
