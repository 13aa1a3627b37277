"""Cards with published figures: their memory, and what KOALA's authors saw taken of it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Card:
    """A graphics card.

    Args:
        name: What people call it.
        vram: Bytes of its memory.
    """

    name: str
    vram: int


CARDS: Final[Mapping[str, Card]] = {
    "3060ti": Card("RTX 3060 Ti", 8 * 2**30),
    "2080ti": Card("RTX 2080 Ti", 11 * 2**30),
    "4090": Card("RTX 4090", 24 * 2**30),
}

# Bytes at the peak of one guided image in fp16, by card and model (arXiv 2312.04005 and the model
# cards). The authors kept everything on the card.
PUBLISHED_PEAKS: Final[Mapping[tuple[str, str], float]] = {
    ("3060ti", "koala-turbo-700m"): 5.3e9,
    ("2080ti", "koala-turbo-700m"): 4.7e9,
    ("4090", "koala-turbo-700m"): 4.9e9,
    ("3060ti", "koala-turbo-1b"): 6.1e9,
    ("2080ti", "koala-turbo-1b"): 5.5e9,
    ("4090", "koala-turbo-1b"): 5.7e9,
    ("3060ti", "koala-lightning-700m"): 6.8e9,
    ("2080ti", "koala-lightning-700m"): 8.2e9,
    ("4090", "koala-lightning-700m"): 8.3e9,
    ("3060ti", "koala-lightning-1b"): 7.2e9,
    ("2080ti", "koala-lightning-1b"): 8.9e9,
    ("4090", "koala-lightning-1b"): 9.1e9,
}
