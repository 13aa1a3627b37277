"""What there is to draw: a prompt or a file of them, and the files that the images go into."""

import itertools
import json
import math
import os
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from koala import output_file
from koala.printable import printable

# Files that are looked for before the request is sent; no server draws so many images of one.
_MOST_LOOKED_AT: Final = 100
_FORMATS: Final = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}


class UsageError(Exception):
    """An argument cannot be meant; the message names it."""


@dataclass(frozen=True, slots=True)
class Piece:
    """One request.

    Args:
        label: What it is called in front of the person who waits.
        request: The body.
        path: The file of its first image.
        force: Whether files that are there may be written over.
    """

    label: str
    request: dict[str, Any]
    path: Path
    force: bool = False

    def paths(self) -> Iterator[Path]:
        """Names for its images, without an end: the second one has ``-2`` and so on."""
        yield self.path
        for number in itertools.count(2):
            yield self.path.with_stem(f"{self.path.stem}-{number}")


def collect(
    prompt: str | None,
    batch: str | None,
    request: dict[str, Any],
    output: Path | None,
    *,
    force: bool = False,
) -> list[Piece]:
    """What the command's arguments ask for.

    Args:
        prompt: The prompt, or
        batch: the file of prompts.
        request: What all of them share.
        output: Where the images go: a file, or a folder for a batch. Folders are made.
        force: Whether files that are there may be written over. Otherwise a file that was named
            must not exist, and names that follow from prompts are numbered on.

    Raises:
        UsageError: The arguments cannot be meant, or the images could not be written.
    """
    if batch is not None:
        if prompt is not None:
            raise UsageError("Give either a prompt or --batch, not both.")
        pieces = _batch(batch, request, output)
    elif prompt is None:
        raise UsageError("Give a prompt, or a file of them with --batch.")
    else:
        pieces = [_single(prompt, request, output)]
    for piece in pieces:
        _refuse_unsendable(piece.request)
    try:
        if batch is None and output is not None and not force:
            _refuse_existing(pieces[0])
        output_file.check(pieces[0].path)
    except OSError as error:
        raise UsageError(f"--output: {error.filename}: {error.strerror}") from None
    return [replace(piece, force=force) for piece in pieces]


def _refuse_existing(piece: Piece) -> None:
    count = piece.request.get("n", 1)
    for path in itertools.islice(piece.paths(), min(max(1, count), _MOST_LOOKED_AT)):
        # A link that leads nowhere is there too.
        if os.path.lexists(path):
            raise UsageError(
                f"--output: {path} exists: name another file, or give --force to write over it."
            )


def _refuse_unsendable(request: dict[str, Any]) -> None:
    for name, value in request.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise UsageError(f"{name}: {value} is no number.")
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise UsageError(f"{name}: it is not text in UTF-8.") from None


def parse_lora(text: str) -> dict[str, Any]:
    """The request's form of ``NAME`` or ``NAME:WEIGHT``.

    Raises:
        UsageError: The weight is no number.
    """
    name, colon, weight = text.partition(":")
    if not colon:
        return {"name": name}
    try:
        number = float(weight)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise UsageError(f"--lora: {text}: the weight {weight!r} is no number.")
    return {"name": name, "weight": number}


def _single(prompt: str, request: dict[str, Any], output: Path | None) -> Piece:
    """One prompt, drawn into ``output`` or a file named after it."""
    if output is None:
        output = Path(f"{_slug(prompt)}.png")
    elif output.suffix.lower() not in _FORMATS:
        raise UsageError(
            f"--output: {output}: the file name must end in one of {', '.join(_FORMATS)}, which "
            "says the format."
        )
    else:
        request = {**request, "output_format": _FORMATS[output.suffix.lower()]}
    return Piece(_shortened(prompt), {**request, "prompt": prompt}, output)


def _batch(source: str, request: dict[str, Any], folder: Path | None) -> list[Piece]:
    """The prompts of a file, or of stdin (``-``), one a line; their files are numbered.

    Blank lines and those that begin with ``#`` are left out.
    """
    prompts = list(_prompts(_lines(source)))
    if not prompts:
        raise UsageError(f"--batch: {source}: there is no prompt in it.")
    folder = folder or Path()
    if folder.suffix.lower() in _FORMATS:
        raise UsageError(f"--output: {folder}: with --batch this is a folder, not an image.")
    digits = max(2, len(str(len(prompts))))
    pieces = []
    for i, prompt in enumerate(prompts):
        piece = _single(prompt, request, None)
        number = f"{i + 1:0{digits}}"
        path = folder / f"{number}-{piece.path.name}"
        pieces.append(replace(piece, label=f"{number} {piece.label}", path=path))
    return pieces


def _slug(prompt: str) -> str:
    words = re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")
    return words[:48].strip("-") or "image"


def _lines(source: str) -> list[str]:
    try:
        if source == "-":
            return sys.stdin.read().split("\n")
        return Path(source).read_text(encoding="utf-8-sig").split("\n")
    except OSError as error:
        raise UsageError(f"--batch: {source}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UsageError(f"--batch: {source}: it is not text in UTF-8.") from None


def _prompts(lines: Iterable[str]) -> Iterator[str]:
    stripped = (line.strip() for line in lines)
    return (line for line in stripped if line and not line.startswith("#"))


def _shortened(prompt: str) -> str:
    words = printable(" ".join(prompt.split()))
    return words if len(words) <= 32 else f"{words[:31].rstrip()}…"
