"""Files that a command writes for its user: whole or not at all, and over nothing unasked."""

import os
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from errno import EEXIST, EISDIR
from pathlib import Path
from typing import Final
from uuid import uuid4

# About as much as a small image: an empty file has room on a full disk too.
_PROBE_BYTES: Final = 65_536


def check(path: Path) -> None:
    """Make sure that ``path`` can be written later, before work is put into what goes there.

    Folders that are missing are made.

    Raises:
        OSError: It cannot be; the error names the file or folder.
    """
    if path.is_dir():
        raise IsADirectoryError(EISDIR, os.strerror(EISDIR), str(path))
    with suppress(FileExistsError):
        path.parent.mkdir(parents=True)
    # What permissions say is not all: the file system may be full or read-only.
    try:
        with tempfile.TemporaryFile(dir=path.parent) as file:
            file.write(bytes(_PROBE_BYTES))
            file.flush()
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path.parent)) from None


def replace(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path``, over what is there: its reader sees the old file or the new one.

    Raises:
        OSError: It cannot be written; what was there still is.
    """
    # A link stays a link; unlike pathlib's, this takes one that leads to itself for a file.
    path = Path(os.path.realpath(path))
    # Of its own length: the name may be as long as the file system allows.
    temporary = path.with_name(f".koala-{uuid4().hex[:8]}")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise OSError(error.errno, error.strerror, str(path)) from None


def write_new(names: Iterable[Path], data: bytes) -> Path:
    """Write ``data`` to the first of ``names`` that is free, and give that name.

    However many processes do so at the same time, none writes over another's file.

    Raises:
        OSError: It cannot be written; nothing is left of it.
    """
    for path in names:
        try:
            # Taken before it is filled: an empty file under this name is ours.
            path.touch(exist_ok=False)
        except FileExistsError:
            continue
        try:
            replace(path, data)
        except OSError:
            with suppress(OSError):
                path.unlink()
            raise
        return path
    raise FileExistsError(EEXIST, os.strerror(EEXIST), str(path))
