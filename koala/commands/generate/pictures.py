"""Pictures in the terminal: real ones where it can show them, coloured half blocks elsewhere."""

import logging
import math
import sys
from collections.abc import Sequence
from typing import Any, Final, Protocol, cast

from PIL import Image
from rich.console import Console, ConsoleRenderable

# Of the terminal's height, in lines; the bar and some of what was there before stay in sight.
_MOST_LINES: Final = 20
_LINES_LEFT: Final = 4
_GAP_PIXELS: Final = 4


class Picture(ConsoleRenderable, Protocol):
    """A picture that rich can print; one that the terminal stores is freed by ``cleanup``."""

    def cleanup(self) -> None:
        """Free what the terminal stores of it."""


class Easel:
    """Makes pictures for one terminal. Making the first one asks the terminal what it can.

    Args:
        console: Where they will be printed.
    """

    def __init__(self, console: Console) -> None:
        # A terminal that does not answer is nothing to warn of.
        logging.getLogger("textual_image").addHandler(logging.NullHandler())
        # Importing it is what asks the terminal.
        from textual_image.renderable import Image as kind

        self._console = console
        self._kind: Any = kind
        # This asks for the size of a character, which is no good while something is displayed.
        console.measure(self.picture([Image.new("RGB", (1, 1))]))

    def picture(self, images: Sequence[Image.Image], lines_taken: int = 0) -> Picture:
        """Images side by side, as large as there is room for.

        Args:
            images: At least one, RGB.
            lines_taken: Lines of the terminal that are taken already.
        """
        width, height = self._console.size
        lines = max(1, min(_MOST_LINES, height - _LINES_LEFT - lines_taken))
        strip = _strip(images)
        # A line is about twice as high as a column is wide.
        columns = math.floor(2 * lines * strip.width / strip.height)
        if columns > width:
            lines = max(1, math.floor(width * strip.height / (2 * strip.width)))
        return cast(Picture, self._kind(strip, width="auto", height=lines))


def why_not(console: Console) -> str | None:
    """Why pictures cannot be shown on ``console``; ``None`` where they can."""
    if not (console.is_terminal and sys.stdin is not None and sys.stdin.isatty()):
        return "stdin and stdout must be a terminal"
    if console.is_dumb_terminal or console.no_color or console.color_system is None:
        return "the terminal shows no colours"
    return None


def _strip(images: Sequence[Image.Image]) -> Image.Image:
    """All images in one row, of the first one's height."""
    height = images[0].height
    scaled = [image.resize((image.width * height // image.height, height)) for image in images]
    gap = _GAP_PIXELS if len(images) > 1 else 0
    strip = Image.new("RGB", (sum(image.width + gap for image in scaled) - gap, height))
    left = 0
    for image in scaled:
        strip.paste(image, (left, 0))
        left += image.width + gap
    return strip
