"""Rebuild the glyph atlas from a Noto Color Emoji font: ``python -m distill.artwork FONT``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Final

from PIL import Image, ImageDraw, ImageFont

from distill.glyphs import ATLAS_PATH, CELL, COLUMNS, GLYPHS

# The CBDT table of the font holds bitmaps of one strike only; FreeType refuses other sizes.
STRIKE: Final = 109
DEBIAN_FONT: Final = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")


def render_glyph(text: str, font: ImageFont.FreeTypeFont) -> Image.Image:
    """Draw ``text`` in colour, scaled to fill a transparent ``CELL`` x ``CELL`` image.

    Raises:
        ValueError: the font draws nothing for ``text``.
    """
    canvas = Image.new("RGBA", (2 * STRIKE, 2 * STRIKE))
    ImageDraw.Draw(canvas).text((STRIKE // 4, STRIKE // 4), text, font=font, embedded_color=True)
    box = canvas.getbbox()
    if box is None:
        raise ValueError(f"the font has no colour glyph for {text!r}")
    glyph = canvas.crop(box).convert("RGBa")
    scale = CELL / max(glyph.size)
    width, height = (max(1, round(side * scale)) for side in glyph.size)
    cell = Image.new("RGBa", (CELL, CELL))
    cell.paste(
        glyph.resize((width, height), Image.Resampling.LANCZOS),
        ((CELL - width) // 2, (CELL - height) // 2),
    )
    return cell.convert("RGBA")


def build_atlas(font_path: Path) -> Image.Image:
    """Draw every glyph of the table into one RGBA atlas.

    Raises:
        FileNotFoundError: there is no font at ``font_path``.
    """
    if not font_path.is_file():
        raise FileNotFoundError(
            f"no font at {font_path} (Debian and Ubuntu: apt-get install fonts-noto-color-emoji)"
        )
    font = ImageFont.truetype(str(font_path), STRIKE)
    rows = -(-len(GLYPHS) // COLUMNS)
    atlas = Image.new("RGBA", (COLUMNS * CELL, rows * CELL))
    for i, text in enumerate(GLYPHS.values()):
        atlas.paste(render_glyph(text, font), (i % COLUMNS * CELL, i // COLUMNS * CELL))
    return atlas


def main() -> None:
    """Write the atlas."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("font", type=Path, nargs="?", default=DEBIAN_FONT)
    parser.add_argument("--out", type=Path, default=ATLAS_PATH)
    args = parser.parse_args()
    build_atlas(args.font).save(args.out, optimize=True)
    print(f"wrote {len(GLYPHS)} glyphs to {args.out}")


if __name__ == "__main__":
    main()
