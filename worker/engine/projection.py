"""What latents look like, without a decoder: a fixed linear map from latents to RGB.

A VAE's latents are an image of a kind already: a linear map of each 3 by 3 neighbourhood gives 2 by
2 pixels that are right enough to watch a picture come. Which map it is depends on the VAE: a
checkpoint brings its own along (``python -m distill.fit_preview`` makes it), or its VAE is one for
which a map is published.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from PIL import Image
from torch.nn.functional import pad, pixel_shuffle, unfold

# Latents that a pixel depends on, in a square, and pixels for each latent, in a square.
NEIGHBOURHOOD: Final = 3
PIXELS: Final = 2

FILE_NAME: Final = "latent_rgb.json"


class Projection:
    """The map to pixels in [-1, 1].

    Args:
        factors: (9 channels + 1) by 12, with the bias as its last row.
    """

    def __init__(self, factors: torch.Tensor) -> None:
        self.factors = factors

    def draw(self, latents: torch.Tensor) -> list[Image.Image]:
        """RGB images of latents (n, C, h, w), of 2h by 2w pixels."""
        mapped = (neighbourhoods(latents) @ self.factors.to(latents.device)).transpose(1, 2)
        pixels = pixel_shuffle(mapped.reshape(len(latents), -1, *latents.shape[2:]), PIXELS)
        eight_bits = pixels.mul(127.5).add(127.5).clamp(0, 255).round().to(torch.uint8)
        return [Image.fromarray(array) for array in eight_bits.permute(0, 2, 3, 1).cpu().numpy()]

    def save(self, folder: Path) -> None:
        """Store the map beside a checkpoint."""
        text = json.dumps({"factors": self.factors.tolist()}, indent=1)
        (folder / FILE_NAME).write_text(text + "\n")

    @classmethod
    def of(cls, folder: Path | None, vae_config: Any) -> "Projection | None":
        """The map of a checkpoint: its own, or the one published for its VAE; ``None``: neither.

        Args:
            folder: Where the checkpoint is.
            vae_config: diffusers' config of its VAE.

        Raises:
            ValueError: Its own map is not what :meth:`save` writes for such latents.
        """
        if folder is not None and (folder / FILE_NAME).is_file():
            return cls._load(folder / FILE_NAME, int(vae_config.latent_channels))
        for each in _PUBLISHED:
            if each.is_of(vae_config):
                return cls(each.factors())
        return None

    @classmethod
    def _load(cls, path: Path, channels: int) -> "Projection":
        try:
            factors = torch.tensor(json.loads(path.read_text())["factors"], dtype=torch.float32)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is no latent-to-RGB map: {error!r}") from None
        expected = (channels * NEIGHBOURHOOD**2 + 1, 3 * PIXELS**2)
        if factors.shape != expected or not torch.isfinite(factors).all():
            raise ValueError(f"{path} is no latent-to-RGB map for {channels} channels")
        return cls(factors)


def neighbourhoods(latents: torch.Tensor) -> torch.Tensor:
    """The neighbourhood of each latent, and a one for the bias: (n, h w, 9 C + 1).

    Beyond the edge the outermost latents are repeated.
    """
    margin = NEIGHBOURHOOD // 2
    padded = pad(latents.float(), (margin,) * 4, mode="replicate")
    around = unfold(padded, NEIGHBOURHOOD).transpose(1, 2)
    return torch.cat([around, torch.ones_like(around[..., :1])], dim=-1)


@dataclass(frozen=True, slots=True)
class _Published:
    """A map that others found, from one latent to one pixel.

    The numbers are those of ComfyUI's ``comfy/latent_formats.py``.

    Args:
        scaling_factor: Of the VAE's config.
        is_normalised: Whether the config has means and deviations of the latents.
        rgb: Red, green and blue of each channel of the latents.
        bias: What is added.
    """

    scaling_factor: float
    is_normalised: bool
    rgb: tuple[tuple[float, float, float], ...]
    bias: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def is_of(self, vae_config: Any) -> bool:
        """Whether it is for a VAE of this config."""
        return (
            int(vae_config.latent_channels) == len(self.rgb)
            and math.isclose(vae_config.scaling_factor, self.scaling_factor)
            and (getattr(vae_config, "latents_mean", None) is not None) == self.is_normalised
        )

    def factors(self) -> torch.Tensor:
        """The same map with bilinear interpolation to two by two pixels."""
        # Rows: the pixels of a latent in one direction. Columns: the neighbours.
        share = torch.tensor([[0.25, 0.75, 0.0], [0.0, 0.75, 0.25]])
        spread = torch.einsum("cr,yk,xl->cklryx", torch.tensor(self.rgb), share, share)
        bias = torch.tensor(self.bias).repeat_interleave(PIXELS**2)
        return torch.cat([spread.reshape(len(self.rgb) * NEIGHBOURHOOD**2, -1), bias[None]])


_PUBLISHED: Final = (
    # SDXL's VAE, its fp16 variant, and so KOALA's.
    _Published(
        scaling_factor=0.13025,
        is_normalised=False,
        rgb=(
            (0.3651, 0.4232, 0.4341),
            (-0.2533, -0.0042, 0.1068),
            (0.1076, 0.1111, -0.0362),
            (-0.3165, -0.2492, -0.2188),
        ),
        bias=(0.1084, -0.0175, -0.0011),
    ),
    # Playground v2.5: SDXL's VAE with latents that are normalised.
    _Published(
        scaling_factor=0.5,
        is_normalised=True,
        rgb=(
            (0.3920, 0.4054, 0.4549),
            (-0.2634, -0.0196, 0.0653),
            (0.0568, 0.1687, -0.0755),
            (-0.3112, -0.2359, -0.2076),
        ),
    ),
)
