"""From latents to images: one decoder call, and what to do about pixels that are no numbers."""

import torch
from PIL import Image

from worker.engine.pipeline import ResidentPipeline
from worker.engine.sample import NonFiniteError


def decode_pixels(pipeline: ResidentPipeline, latents: torch.Tensor) -> tuple[torch.Tensor, int]:
    """Decode latents (n, C, h, w) to pixels (n, 3, H, W), nominally in [-1, 1].

    SDXL's VAE overflows in fp16 on some latents, which others show as a black image. What came
    out as NaN or infinity is decoded again in fp32.

    Returns:
        The pixels, and how many images were decoded again.
    """
    pixels = pipeline.decode(latents)
    if not pipeline.vae_is_half:
        return pixels, 0
    bad = [i for i, finite in enumerate(_are_finite(pixels)) if not finite]
    if not bad:
        return pixels, 0
    pixels = pixels.float()
    with pipeline.vae_in_float32():
        for i in bad:
            pixels[i] = pipeline.decode(latents[i : i + 1])[0]
    return pixels, len(bad)


def to_images(pixels: torch.Tensor) -> list[Image.Image | Exception]:
    """RGB images of pixels (n, 3, H, W), or for each the reason why there is none."""
    finite = _are_finite(pixels)
    # As diffusers' image processor does it: [-1, 1] to [0, 1], then 8 bits, half to even.
    eight_bits = pixels.mul(0.5).add(0.5).clamp(0, 1).float().mul(255).round().to(torch.uint8)
    arrays = eight_bits.permute(0, 2, 3, 1).contiguous().cpu().numpy()
    return [
        Image.fromarray(array) if ok else NonFiniteError("the decoded image holds NaN or infinity")
        for array, ok in zip(arrays, finite, strict=True)
    ]


def _are_finite(pixels: torch.Tensor) -> list[bool]:
    flags: list[bool] = torch.isfinite(pixels).flatten(1).all(1).tolist()
    return flags
