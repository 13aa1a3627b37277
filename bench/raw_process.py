"""The raw limit as a process, spoken to line by line."""

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from bench.processes import ContenderFailed, environment, python_module
from bench.results import CurvePoint


class RawLimit:
    """A running ``python -m bench.raw_limit``.

    Raises:
        ContenderFailed: It ended.
    """

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.curve = [CurvePoint.model_validate(point) for point in json.loads(self._line())]

    def seconds(self, images: int, unet_rows: int) -> float:
        """Seconds that the loop takes for so many images and U-Net rows.

        Raises:
            ContenderFailed: It ended.
        """
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([images, unet_rows]) + "\n")
        self._process.stdin.flush()
        return float(json.loads(self._line()))

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise ContenderFailed("bench.raw_limit went away")
        return line


@contextmanager
def raw_limit(threads: int) -> Iterator[RawLimit]:
    """Start the raw limit, which measures its curve at once; end it afterwards."""
    process = subprocess.Popen(
        python_module("bench.raw_limit", str(threads)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment(),
        text=True,
    )
    try:
        yield RawLimit(process)
    finally:
        # The end of its input is its signal to end.
        process.communicate()
