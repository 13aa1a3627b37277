"""The header of a safetensors file: what its tensors are, without reading one of them.

The library of that name maps the file, so a file that is cut while it is in use would end the
process with SIGBUS, and a gateway has no torch to hand its tensors to. The format is a length, JSON
and the tensors' bytes without gaps (https://github.com/huggingface/safetensors#format).
"""

import json
import math
import os
from dataclasses import dataclass
from typing import Any, BinaryIO, Final

# The format's own bound.
LONGEST_HEADER: Final = 100_000_000

_LENGTH_BYTES: Final = 8
_METADATA: Final = "__metadata__"
# Bytes of a number by its format; those of other formats are not checked.
_ITEM_BYTES: Final = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64"), 8),
}
_NO_FILE: Final = "it is no safetensors file"


class TensorFileError(ValueError):
    """A file is no safetensors file, or not as long as its header says."""


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """Where one tensor is.

    Args:
        dtype: Its number format as safetensors calls it, such as ``F16``.
        shape: Its shape.
        begin: Its first byte, from the beginning of the file.
        end: The byte behind its last.
    """

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def numbers(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class TensorHeader:
    """What a file says of itself.

    Args:
        tensors: Where each tensor is, by its key.
        metadata: What its writer noted.
    """

    tensors: dict[str, TensorEntry]
    metadata: dict[str, str]


def read_header(file: BinaryIO, longest: int = LONGEST_HEADER) -> TensorHeader:
    """Read the header of an open file and check that the file is as long as it says.

    Args:
        file: The file, at its beginning.
        longest: Most bytes of a header.

    Raises:
        TensorFileError: It is not, or it has no such header.
        OSError: It cannot be read.
    """
    size = os.fstat(file.fileno()).st_size
    length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
    if size < _LENGTH_BYTES or not 2 <= length <= LONGEST_HEADER:
        raise TensorFileError(_NO_FILE)
    if length > longest:
        raise TensorFileError(f"its header has {length} bytes, at most {longest} are read")
    text = file.read(length)
    if len(text) < length:
        raise TensorFileError("it is truncated within its header")
    begin = _LENGTH_BYTES + length
    try:
        # Deep nesting ends in a RecursionError.
        content = json.loads(text)
        metadata = {str(key): str(value) for key, value in content.pop(_METADATA, {}).items()}
        tensors = {key: _entry(entry, begin) for key, entry in content.items()}
        # JSON can spell halves of surrogate pairs, which no text has.
        "".join(tensors).encode()
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        raise TensorFileError(_NO_FILE) from None
    end = begin
    for entry in sorted(tensors.values(), key=lambda entry: (entry.begin, entry.end)):
        if entry.begin != end:
            raise TensorFileError(_NO_FILE)
        end = entry.end
    if size < end:
        raise TensorFileError(f"it is truncated, {size} of {end} bytes are there")
    if size > end:
        raise TensorFileError(f"it has {size - end} bytes too many")
    return TensorHeader(tensors, metadata)


def _entry(told: dict[str, Any], begin: int) -> TensorEntry:
    dtype, shape, (first, last) = told["dtype"], told["shape"], told["data_offsets"]
    numbers = (first, last, *shape)
    if not isinstance(dtype, str) or any(type(n) is not int or n < 0 for n in numbers):
        raise TypeError(told)
    entry = TensorEntry(dtype, tuple(shape), begin + first, begin + last)
    wanted = _ITEM_BYTES.get(dtype)
    if last < first or (wanted is not None and last - first != wanted * entry.numbers):
        raise ValueError(told)
    return entry
