"""The table of glyphs, and the committed atlas that holds their artwork.

The atlas is one RGBA PNG, ``COLUMNS`` cells wide, each cell ``CELL`` x ``CELL`` pixels, in
the order of ``GLYPHS``.  Training and evaluation read only the atlas, never the font, so
they give the same pixels on every machine; ``python -m distill.artwork`` rebuilds it.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image

CELL: Final = 64
COLUMNS: Final = 12
ATLAS_PATH: Final = Path(__file__).with_name("glyphs.png")

GLYPHS: Final[dict[str, str]] = {
    "koala": "🐨",
    "cat": "🐱",
    "dog": "🐶",
    "fox": "🦊",
    "panda": "🐼",
    "frog": "🐸",
    "pig": "🐷",
    "lion": "🦁",
    "tiger": "🐯",
    "mouse": "🐭",
    "rabbit": "🐰",
    "chicken": "🐔",
    "penguin": "🐧",
    "owl": "🦉",
    "duck": "🦆",
    "flamingo": "🦩",
    "peacock": "🦚",
    "parrot": "🦜",
    "unicorn": "🦄",
    "zebra": "🦓",
    "giraffe": "🦒",
    "elephant": "🐘",
    "turtle": "🐢",
    "snake": "🐍",
    "snail": "🐌",
    "butterfly": "🦋",
    "bee": "🐝",
    "ladybug": "🐞",
    "spider": "🕷️",
    "crab": "🦀",
    "octopus": "🐙",
    "whale": "🐳",
    "fish": "🐠",
    "dinosaur": "🦕",
    "apple": "🍎",
    "banana": "🍌",
    "tangerine": "🍊",
    "lemon": "🍋",
    "watermelon": "🍉",
    "grape": "🍇",
    "strawberry": "🍓",
    "cherry": "🍒",
    "pineapple": "🍍",
    "coconut": "🥥",
    "avocado": "🥑",
    "eggplant": "🍆",
    "carrot": "🥕",
    "corn": "🌽",
    "broccoli": "🥦",
    "mushroom": "🍄",
    "bread": "🍞",
    "pretzel": "🥨",
    "cheese": "🧀",
    "pizza": "🍕",
    "hamburger": "🍔",
    "doughnut": "🍩",
    "cake": "🎂",
    "cupcake": "🧁",
    "lollipop": "🍭",
    "ice cream": "🍦",
    "popcorn": "🍿",
    "egg": "🥚",
    "teapot": "🫖",
    "beer": "🍺",
    "car": "🚗",
    "tractor": "🚜",
    "train": "🚂",
    "bicycle": "🚲",
    "airplane": "✈️",
    "helicopter": "🚁",
    "rocket": "🚀",
    "sailboat": "⛵",
    "anchor": "⚓",
    "house": "🏠",
    "castle": "🏰",
    "volcano": "🌋",
    "sun": "☀️",
    "moon": "🌙",
    "star": "⭐",
    "rainbow": "🌈",
    "snowman": "⛄",
    "fire": "🔥",
    "umbrella": "☂️",
    "tree": "🌳",
    "palm tree": "🌴",
    "cactus": "🌵",
    "sunflower": "🌻",
    "tulip": "🌷",
    "rose": "🌹",
    "clover": "🍀",
    "heart": "❤️",
    "diamond": "💎",
    "crown": "👑",
    "hat": "🎩",
    "shoe": "👟",
    "guitar": "🎸",
    "violin": "🎻",
    "drum": "🥁",
    "basketball": "🏀",
    "trophy": "🏆",
    "target": "🎯",
    "dice": "🎲",
    "kite": "🪁",
    "teddy bear": "🧸",
    "gift": "🎁",
    "balloon": "🎈",
    "key": "🔑",
    "lock": "🔒",
    "bell": "🔔",
    "book": "📕",
    "pencil": "✏️",
    "magnet": "🧲",
    "camera": "📷",
    "television": "📺",
    "clock": "⏰",
    "hourglass": "⏳",
    "globe": "🌍",
    "light bulb": "💡",
    "robot": "🤖",
    "ghost": "👻",
    "alien": "👽",
    "skull": "💀",
    "pumpkin": "🎃",
    "clown": "🤡",
}

NAMES: Final[tuple[str, ...]] = tuple(GLYPHS)

FloatArray = npt.NDArray[np.float32]


@cache
def load_atlas(path: Path = ATLAS_PATH) -> tuple[Image.Image, ...]:
    """Return one ``CELL`` x ``CELL`` RGBA image per name in ``NAMES``.

    Raises:
        ValueError: the atlas file's size does not match the table.
    """
    with Image.open(path) as file:
        atlas = file.convert("RGBA")
    rows = -(-len(NAMES) // COLUMNS)
    expected = (COLUMNS * CELL, rows * CELL)
    if atlas.size != expected:
        raise ValueError(
            f"{path} is {atlas.size} px, but {len(NAMES)} glyphs need {expected}; "
            "rebuild it with `python -m distill.artwork`"
        )
    return tuple(
        atlas.crop((x, y, x + CELL, y + CELL))
        for x, y in ((i % COLUMNS * CELL, i // COLUMNS * CELL) for i in range(len(NAMES)))
    )


@cache
def glyphs_at(size: int) -> tuple[FloatArray, FloatArray]:
    """Resize every glyph to ``size`` px.

    Returns:
        Premultiplied colour (N, size, size, 3) and alpha (N, size, size, 1), both in 0..1.

    Raises:
        ValueError: ``size`` is not in 1..``CELL``.
    """
    if not 1 <= size <= CELL:
        raise ValueError(f"glyph size must be 1..{CELL} px, got {size}")
    # "RGBa" is Pillow's premultiplied mode: resizing it keeps transparent pixels' colour
    # from bleeding into the edges.
    small = [
        glyph.convert("RGBa").resize((size, size), Image.Resampling.LANCZOS)
        for glyph in load_atlas()
    ]
    pixels = np.stack([np.frombuffer(s.tobytes(), np.uint8).reshape(size, size, 4) for s in small])
    scaled = pixels.astype(np.float32) / 255.0
    return scaled[..., :3], scaled[..., 3:]
