"""Processes whose clock shows another time than the machine's, which a test can change.

libfaketime stands between them and the kernel. It leaves the monotonic clock alone, as a wrong
clock does, and the times of files too, which the kernel gives them.
"""

from pathlib import Path

import libfaketime


class Clock:
    """The clock of the processes that were started with its ``env``.

    Args:
        path: A file of its own: the processes look there at each reading.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        _, preload = libfaketime.get_reload_information()
        self.env = preload | {"FAKETIME_TIMESTAMP_FILE": str(path), "NO_FAKE_STAT": "1"}
        self.shift("+0")

    def shift(self, how_far: str) -> None:
        """Let the clock be wrong by ``how_far``, such as ``-7s`` or ``+30h``."""
        # A reader must never find half of it.
        draft = self._path.with_suffix(".new")
        draft.write_text(f"{how_far}\n")
        draft.rename(self._path)
