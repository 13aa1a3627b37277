"""Which kernel computes the attention, for that decides what it takes."""

from enum import StrEnum


class Attention(StrEnum):
    """Kernels of scaled dot product attention.

    Flash and memory-efficient attention take the same: their output and one number per row.
    """

    FUSED = "fused"
    MATH = "math"
