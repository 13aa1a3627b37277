"""Where torch keeps the code that it compiled, which later processes load and run."""

import os
import tempfile
from collections.abc import MutableMapping
from pathlib import Path
from typing import Final

from koala.private_folder import intruder

_VARIABLE: Final = "TORCHINDUCTOR_CACHE_DIR"


class NoPlace(Exception):
    """There is no folder for compiled code; the message says why and what to do."""


def configure(environ: MutableMapping[str, str]) -> None:
    """Name a folder that only this user can write to; before torch is imported.

    torch's own choice in the temporary directory is used even if another user made it first: that
    user's code would run as ours. A folder that is named already is the operator's choice.

    Raises:
        NoPlace: The folder cannot be made, or another user has a say in it.
    """
    if environ.get(_VARIABLE):
        return
    folder = Path(tempfile.gettempdir()) / f"koala-compiled-{os.geteuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        reason = intruder(folder)
    except OSError as error:
        reason = error.strerror
    if reason is not None:
        raise NoPlace(f"compiled code cannot be kept in {folder}: {reason}; set {_VARIABLE}")
    environ[_VARIABLE] = str(folder)
