"""The sample sheet: a grid of pictures with their captions."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Final

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from distill.glyphs import FloatArray

COLUMNS: Final = 6
ZOOM: Final = 2
CAPTION_HEIGHT: Final = 40

PROMPTS: Final = (
    "a koala on a blue background",
    "a fox on a green background",
    "a rocket on a black background",
    "a strawberry on a white background",
    "a castle on a pink background",
    "a butterfly on a yellow background",
    "koala",
    "a photo of a penguin",
    "owl on purple",
    "an emoji of a tiger on red",
    "a guitar, yellow background",
    "a green background with an octopus",
    "a koala to the left of a banana on a white background",
    "a cat to the right of a dog on a pink background",
    "a star above a house on a black background",
    "a robot below a rainbow on a yellow background",
    "a cactus and a crab on blue",
    "a lion and an apple",
    "a koala in the top left corner on a blue background",
    "a frog in the top right corner on a red background",
    "a pizza in the bottom left corner on a purple background",
    "a moon in the bottom right corner on a black background",
    "a cute little panda on a green background",
    "a very happy unicorn on purple",
)


def sheet(pictures: Sequence[FloatArray], captions: Sequence[str]) -> Image.Image:
    """Lay out equal-size pictures, (height, width, 3) in 0..1, with a caption below each."""
    height, width = (side * ZOOM for side in pictures[0].shape[:2])
    rows = -(-len(pictures) // COLUMNS)
    step_x, step_y = width + 12, height + CAPTION_HEIGHT
    page = Image.new("RGB", (COLUMNS * step_x, rows * step_y), "white")
    draw = ImageDraw.Draw(page)
    font = ImageFont.load_default(10)
    for i, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        x, y = i % COLUMNS * step_x + 6, i // COLUMNS * step_y + 4
        pixels = (np.clip(picture, 0.0, 1.0) * 255).round().astype(np.uint8)
        page.paste(
            Image.fromarray(pixels).resize((width, height), Image.Resampling.NEAREST), (x, y)
        )
        draw.rectangle((x - 1, y - 1, x + width, y + height), outline="#bbbbbb")
        lines = textwrap.wrap(caption, 26)
        draw.multiline_text((x, y + height + 1), "\n".join(lines), "black", font, spacing=1)
    return page
