"""Text from elsewhere, made fit for a terminal."""

import json
import unicodedata
from typing import Any, Final

# Controls (C0, DEL, C1), formats (bidirectional, zero-width, tags), halves of surrogate pairs,
# and the two separators that break lines beside the control characters that do.
_UNFIT: Final = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})


def printable(text: str, keep: str = "") -> str:
    """``text`` with a visible escape, such as ``\\x1b``, for all that a terminal would act upon.

    Control characters move the cursor, change colours and titles, and answer for the user;
    characters of direction and zero width show another text than is there.

    Args:
        text: Anything.
        keep: Characters that stay as they are.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        character
        if unicodedata.category(character) not in _UNFIT or character in keep
        else character.encode("unicode_escape").decode("ascii")
        for character in text
    )


def json_line(value: object, **options: Any) -> str:
    """``value`` as a line of JSON that a terminal shows as it is: printable ASCII.

    Args:
        value: What ``json.dumps`` takes.
        options: Of ``json.dumps``.
    """
    # All other control characters it escapes by itself.
    return json.dumps(value, **options).replace("\x7f", "\\u007f")
