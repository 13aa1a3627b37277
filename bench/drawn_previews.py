"""Our own worker, drawing previews in a given way: ``python -m bench.drawn_previews all``.

The same process as ``koala work`` but for the time that previews may take. All that this benchmark
knows of the worker's inside is in this file.
"""

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Final
from unittest.mock import patch

import worker.run
from bench.previews import Way
from koala import logs
from koala.settings import Settings
from worker.engine import previews

_CHANGES: Final[dict[Way, dict[str, Any]]] = {
    Way.SHIPPED: {},
    Way.ALL: {"_SHOWING_SHARE": 1.0},
}


@contextmanager
def drawing(way: Way) -> Iterator[None]:
    """Draw previews in that way, within the context."""
    with ExitStack() as stack:
        for name, value in _CHANGES[way].items():
            stack.enter_context(patch.object(previews, name, value))
        yield


def main(way: Way) -> int:
    """Work until a signal asks to stop; the process's exit code."""
    settings = Settings()
    logs.configure(settings)
    # Everything else has to stay as it is, so the worker's own start is used and not repeated.
    with drawing(way):
        return worker.run.run(settings)


if __name__ == "__main__":
    sys.exit(main(Way(sys.argv[1])))
