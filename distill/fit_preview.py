"""Fit the latent-to-RGB map of a checkpoint: ``python -m distill.fit_preview FOLDER``.

The map is the least-squares one from latents to the pixels that the decoder makes of them, scaled
down. A worker that finds it beside the checkpoint draws previews with it.
"""

import argparse
from pathlib import Path
from typing import Final
from unittest.mock import patch

import torch
from torch.nn.functional import avg_pool2d, pixel_unshuffle

from worker.engine import Engine, Failed, ResidentPipeline, SampleRequest
from worker.engine.projection import FILE_NAME, PIXELS, Projection, neighbourhoods

_SUBJECTS: Final = ("koala", "banana", "cat", "house", "rose", "fish", "car", "apple")
_COLOURS: Final = ("red", "blue", "green", "white", "black", "yellow", "purple", "orange")
# Keeps the equations solvable however alike the images are.
_RIDGE: Final = 1e-4


class Fit:
    """The equations of the map, added up from decoded images."""

    def __init__(self) -> None:
        self._squares: torch.Tensor | None = None
        self._products: torch.Tensor | None = None

    def observe(self, latents: torch.Tensor, pixels: torch.Tensor) -> None:
        """Learn from decoded images.

        Args:
            latents: (n, C, h, w).
            pixels: (n, 3, H, W), what the decoder made of them, at an even multiple of h and w.
        """
        scale = pixels.shape[-1] // latents.shape[-1]
        small = pixel_unshuffle(avg_pool2d(pixels.float(), scale // PIXELS), PIXELS)
        targets = small.permute(0, 2, 3, 1).reshape(-1, small.shape[1])
        inputs = neighbourhoods(latents).flatten(0, 1)
        squares, products = (inputs.T @ inputs).cpu(), (inputs.T @ targets).cpu()
        self._squares = squares if self._squares is None else self._squares + squares
        self._products = products if self._products is None else self._products + products

    def solve(self) -> Projection:
        """The map.

        Raises:
            RuntimeError: Nothing was decoded.
        """
        if self._squares is None or self._products is None:
            raise RuntimeError("nothing was decoded")
        ridge = _RIDGE * len(self._squares) * torch.eye(len(self._squares))
        return Projection(torch.linalg.solve(self._squares + ridge, self._products))


def fit(pipeline: ResidentPipeline, images: int, steps: int) -> Projection:
    """Draw ``images`` images of many colours and learn from them.

    Raises:
        RuntimeError: One could not be drawn.
    """
    fitted, decode = Fit(), pipeline.decode

    def observed(latents: torch.Tensor) -> torch.Tensor:
        pixels = decode(latents)
        fitted.observe(latents, pixels)
        return pixels

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
    with patch.object(pipeline, "decode", observed):
        while not engine.is_idle:
            for event in engine.step():
                if isinstance(event, Failed):
                    raise RuntimeError("an image could not be drawn") from event.error
    return fitted.solve()


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
