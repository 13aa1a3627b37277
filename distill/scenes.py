"""Scenes: which glyphs stand where on which background, and their exact pixels.

Layouts keep every glyph size at one phase of the 4 px latent grid, so that the autoencoder
spends its capacity on the artwork rather than on sub-pixel shifts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

from distill.glyphs import NAMES, FloatArray, glyphs_at

BACKGROUNDS: Final[dict[str, tuple[int, int, int]]] = {
    "white": (255, 255, 255),
    "black": (24, 24, 28),
    "red": (176, 32, 48),
    "yellow": (255, 222, 84),
    "green": (52, 150, 84),
    "blue": (58, 118, 240),
    "purple": (128, 72, 196),
    "pink": (255, 168, 206),
}
COLOURS: Final[tuple[str, ...]] = tuple(BACKGROUNDS)

Layout = Literal[
    "centre", "top left", "top right", "bottom left", "bottom right", "horizontal", "vertical"
]
CORNERS: Final[tuple[Layout, ...]] = ("top left", "top right", "bottom left", "bottom right")
PAIRS: Final[tuple[Layout, ...]] = ("horizontal", "vertical")

SINGLE_SIZE: Final = 48
SMALL_SIZE: Final = 30
PAIR_SIZE: Final = 44  # in a half that is at least PAIR_SIZE + margin wide and high
SQUARE: Final = (64, 64)
WIDE: Final = (96, 64)
TALL: Final = (64, 96)
SIZES: Final = (SQUARE, WIDE, TALL)
SIZE_SHARE: Final = (0.8, 0.1, 0.1)  # of training batches


@dataclass(frozen=True, slots=True)
class Scene:
    """One picture: one or two glyphs, a layout, a background and a size.

    Attributes:
        glyphs: names; in a pair, left before right or upper before lower.
        layout: where they stand.
        background: a key of ``BACKGROUNDS``.
        size: (width, height) in pixels.
    """

    glyphs: tuple[str, ...]
    layout: Layout
    background: str
    size: tuple[int, int] = SQUARE

    def __post_init__(self) -> None:
        expected = 2 if self.layout in PAIRS else 1
        if len(self.glyphs) != expected:
            raise ValueError(f"layout {self.layout!r} takes {expected} glyphs, got {self.glyphs}")
        if unknown := [name for name in self.glyphs if name not in _INDEX]:
            raise ValueError(f"unknown glyph names: {unknown}")
        if self.background not in BACKGROUNDS:
            raise ValueError(f"unknown background: {self.background!r}")
        if min(self.size) < SQUARE[0]:
            raise ValueError(f"scenes are at least 64 px wide and high, got {self.size}")


_INDEX: Final = {name: i for i, name in enumerate(NAMES)}


@dataclass(frozen=True, slots=True)
class Box:
    """A square in a picture: left and top edge and side, in pixels."""

    x: int
    y: int
    side: int


def boxes(layout: Layout, size: tuple[int, int]) -> tuple[Box, ...]:
    """Where a layout puts its glyphs in a picture of ``size`` (width, height)."""
    width, height = size
    if layout == "centre":
        return (Box((width - SINGLE_SIZE) // 2, (height - SINGLE_SIZE) // 2, SINGLE_SIZE),)
    if layout in PAIRS:
        across = layout == "horizontal"
        cell_w, cell_h = (width // 2, height) if across else (width, height // 2)
        side = PAIR_SIZE if min(cell_w, cell_h) >= PAIR_SIZE + 4 else SMALL_SIZE
        x, y = (cell_w - side) // 2, (cell_h - side) // 2
        step = (cell_w, 0) if across else (0, cell_h)
        return (Box(x, y, side), Box(x + step[0], y + step[1], side))
    x = 1 if "left" in layout else width - SMALL_SIZE - 1
    y = 1 if "top" in layout else height - SMALL_SIZE - 1
    return (Box(x, y, SMALL_SIZE),)


def render(scene: Scene) -> FloatArray:
    """Draw a scene: (height, width, 3) float32 sRGB in 0..1."""
    width, height = scene.size
    picture = np.empty((height, width, 3), np.float32)
    picture[:] = np.asarray(BACKGROUNDS[scene.background], np.float32) / 255.0
    for name, box in zip(scene.glyphs, boxes(scene.layout, scene.size), strict=True):
        colour, alpha = glyphs_at(box.side)
        i = _INDEX[name]
        patch = picture[box.y : box.y + box.side, box.x : box.x + box.side]
        patch *= 1.0 - alpha[i]
        patch += colour[i]
    return np.clip(picture, 0.0, 1.0, out=picture)


def sample_scene(
    rng: np.random.Generator, size: tuple[int, int] = SQUARE, pair_share: float = 0.3
) -> Scene:
    """Draw a random scene: ``pair_share`` pairs, 0.1 in a corner, the rest centred.

    Raises:
        ValueError: ``pair_share`` is not in 0..0.9.
    """
    if not 0.0 <= pair_share <= 0.9:
        raise ValueError(f"pair_share must be in 0..0.9, got {pair_share}")
    background = COLOURS[rng.integers(len(COLOURS))]
    draw = rng.random()
    if draw < pair_share:
        # Most pairs run along the longer side; a square has no longer side.
        lean = {SQUARE: 0.5, WIDE: 0.85, TALL: 0.15}.get(size, 0.5)
        layout: Layout = "horizontal" if rng.random() < lean else "vertical"
        first, second = rng.choice(len(NAMES), 2, replace=False)
        return Scene((NAMES[first], NAMES[second]), layout, background, size)
    name = NAMES[rng.integers(len(NAMES))]
    if draw < pair_share + 0.1:
        return Scene((name,), CORNERS[rng.integers(len(CORNERS))], background, size)
    return Scene((name,), "centre", background, size)
