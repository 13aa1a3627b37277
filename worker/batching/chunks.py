"""How much the decoder may do in one tick."""

from typing import Final

from worker.batching.batcher import Size

# Pixels decoded per tick: many thumbnails, one image of medium size, or one tile.
PIXEL_BUDGET: Final = 512 * 512

# An image of more pixels is decoded by tiles. One of SDXL's native size is not: what the decoder
# makes of a tile differs a little from what it makes of the whole.
LARGEST_WHOLE: Final = 1280 * 1280


def images_per_chunk(size: Size, pixel_budget: int = PIXEL_BUDGET) -> int:
    """Most images of ``size`` decoded at once; an image above the budget is a chunk of its own."""
    width, height = size
    return max(1, pixel_budget // (width * height))
