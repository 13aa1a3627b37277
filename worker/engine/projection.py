"""What latents look like, without the decoder: a linear map from latents to RGB.

A VAE's latents are an image of a kind already: a linear map of each 3 by 3 neighbourhood gives 2 by
2 pixels that are right enough to watch a picture come. The map is the least-squares one from
latents to the pixels that the decoder made of them, scaled down, and it is learned from the images
that are drawn anyway, so it fits whichever checkpoint is loaded.
"""

import json
from pathlib import Path
from typing import Final

import torch
from PIL import Image
from torch.nn.functional import avg_pool2d, pixel_shuffle, pixel_unshuffle, unfold

# Latents that a pixel depends on, in a square, and pixels for each latent, in a square.
_NEIGHBOURHOOD: Final = 3
_PIXELS: Final = 2

# The map is settled by then: it has few parameters, and each image hundreds of latents or more.
_ENOUGH_IMAGES: Final = 64
# Keeps the equations solvable while little was seen.
_RIDGE: Final = 1e-4

FILE_NAME: Final = "latent_rgb.json"


class Projection:
    """The map to pixels in [-1, 1]: (9 channels + 1) by 12, with the bias as its last row."""

    def __init__(self) -> None:
        self._images = 0
        self._squares: torch.Tensor | None = None
        self._products: torch.Tensor | None = None
        self._factors: torch.Tensor | None = None

    @property
    def is_known(self) -> bool:
        """Whether there is a map yet."""
        return self._images > 0 or self._factors is not None

    def observe(self, latents: torch.Tensor, pixels: torch.Tensor) -> None:
        """Learn from decoded images; does nothing once enough was seen.

        Args:
            latents: (n, C, h, w).
            pixels: (n, 3, H, W), what the decoder made of them, at an even multiple of h and w.
        """
        if self._images >= _ENOUGH_IMAGES or not torch.isfinite(pixels).all():
            return
        scale = pixels.shape[-1] // latents.shape[-1]
        small = pixel_unshuffle(avg_pool2d(pixels.float(), scale // _PIXELS), _PIXELS)
        targets = small.permute(0, 2, 3, 1).reshape(-1, small.shape[1])
        inputs = _neighbourhoods(latents).reshape(-1, _inputs(latents.shape[1]))
        squares, products = (inputs.T @ inputs).cpu(), (inputs.T @ targets).cpu()
        self._squares = squares if self._squares is None else self._squares + squares
        self._products = products if self._products is None else self._products + products
        self._images += len(latents)
        self._factors = None

    def draw(self, latents: torch.Tensor) -> list[Image.Image]:
        """RGB images of latents (n, C, h, w), of 2h by 2w pixels.

        Raises:
            RuntimeError: Nothing is known yet.
        """
        factors = self._solve().to(latents.device)
        mapped = (_neighbourhoods(latents) @ factors).transpose(1, 2)
        pixels = pixel_shuffle(mapped.reshape(len(latents), -1, *latents.shape[2:]), _PIXELS)
        eight_bits = pixels.mul(127.5).add(127.5).clamp(0, 255).round().to(torch.uint8)
        return [Image.fromarray(array) for array in eight_bits.permute(0, 2, 3, 1).cpu().numpy()]

    def save(self, folder: Path) -> None:
        """Store the map beside a checkpoint, for workers that have drawn nothing yet.

        Raises:
            RuntimeError: Nothing is known yet.
        """
        text = json.dumps({"factors": self._solve().tolist()}, indent=1)
        (folder / FILE_NAME).write_text(text + "\n")

    @classmethod
    def load(cls, folder: Path, channels: int) -> "Projection":
        """The map that a checkpoint brings along, or one that has yet to be learned.

        Raises:
            ValueError: The file is not what :meth:`save` writes for so many latent channels.
        """
        projection = cls()
        path = folder / FILE_NAME
        if not path.is_file():
            return projection
        try:
            factors = torch.tensor(json.loads(path.read_text())["factors"], dtype=torch.float32)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is no latent-to-RGB map: {error!r}") from None
        expected = (_inputs(channels), 3 * _PIXELS**2)
        if factors.shape != expected or not torch.isfinite(factors).all():
            raise ValueError(f"{path} is no latent-to-RGB map for {channels} channels")
        projection._factors = factors
        projection._images = _ENOUGH_IMAGES
        return projection

    def _solve(self) -> torch.Tensor:
        if self._factors is None:
            if self._squares is None or self._products is None:
                raise RuntimeError("nothing was decoded yet")
            ridge = _RIDGE * len(self._squares) * torch.eye(len(self._squares))
            self._factors = torch.linalg.solve(self._squares + ridge, self._products)
        return self._factors


def _inputs(channels: int) -> int:
    return channels * _NEIGHBOURHOOD**2 + 1


def _neighbourhoods(latents: torch.Tensor) -> torch.Tensor:
    """The neighbourhood of each latent, and a one for the bias: (n, h w, 9 C + 1)."""
    around = unfold(latents.float(), _NEIGHBOURHOOD, padding=_NEIGHBOURHOOD // 2).transpose(1, 2)
    return torch.cat([around, torch.ones_like(around[..., :1])], dim=-1)
