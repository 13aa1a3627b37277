"""Read a picture back into a scene: the nearest rendered scene in pixel space.

The reading knows nothing of the prompt.  It considers every layout, background, glyph and
pair of glyphs, and takes the combination with the least squared error.  Glyph boxes do not
overlap, so the best glyph of each box is found on its own.
"""

from __future__ import annotations

from functools import cache
from typing import Final, get_args

import numpy as np

from distill.glyphs import NAMES, FloatArray, glyphs_at
from distill.scenes import BACKGROUNDS, COLOURS, Layout, Scene, boxes

LAYOUTS: Final[tuple[Layout, ...]] = get_args(Layout)
# Fraction of the channel range.  Blank or noisy pictures lie far beyond it, and correct
# samples well below.
MAX_RMSE: Final = 0.2


@cache
def _templates(side: int) -> tuple[FloatArray, FloatArray]:
    """Glyphs on each background: pixels (8, N, side * side * 3), squared norms (8, N)."""
    colour, alpha = glyphs_at(side)
    flat = np.asarray([BACKGROUNDS[c] for c in COLOURS], np.float32) / 255.0
    pixels = colour[None] + (1.0 - alpha[None]) * flat[:, None, None, None, :]
    pixels = np.clip(pixels, 0.0, 1.0).reshape(len(COLOURS), len(NAMES), -1)
    return pixels, np.square(pixels).sum(-1)


def read(picture: FloatArray) -> tuple[Scene, float]:
    """Return the scene nearest to a picture, and the root mean squared error to it.

    Args:
        picture: (height, width, 3) sRGB in 0..1, at least 64 px each way.

    Raises:
        ValueError: the picture has another shape.
    """
    if picture.ndim != 3 or picture.shape[2] != 3 or min(picture.shape[:2]) < 64:
        raise ValueError(f"expected (height >= 64, width >= 64, 3), got {picture.shape}")
    height, width = picture.shape[:2]
    best: tuple[float, Scene] | None = None
    flat = np.asarray([BACKGROUNDS[c] for c in COLOURS], np.float32) / 255.0
    # (8, height, width): squared error of every pixel against each flat background.
    plain = np.square(picture[None] - flat[:, None, None, :]).sum(-1)
    for layout in LAYOUTS:
        error = plain.sum((1, 2))
        winners = []
        for box in boxes(layout, (width, height)):
            rows, columns = slice(box.y, box.y + box.side), slice(box.x, box.x + box.side)
            crop = picture[rows, columns].reshape(-1)
            pixels, norms = _templates(box.side)
            distance = norms - 2.0 * (pixels @ crop) + float(crop @ crop)
            winners.append(distance.argmin(1))
            error = error - plain[:, rows, columns].sum((1, 2)) + distance.min(1)
        colour = int(error.argmin())
        if best is None or error[colour] < best[0]:
            glyphs = tuple(NAMES[int(winner[colour])] for winner in winners)
            best = float(error[colour]), Scene(glyphs, layout, COLOURS[colour], (width, height))
    assert best is not None
    return best[1], float(np.sqrt(max(0.0, best[0]) / picture.size))


def accepts(scene: Scene, picture: FloatArray) -> bool:
    """Whether a picture reads as exactly ``scene`` and is close to it."""
    nearest, rmse = read(picture)
    return nearest == scene and rmse <= MAX_RMSE
