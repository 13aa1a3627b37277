"""How a download shows its progress: a bar on a terminal, a line now and then in a log."""

import sys
import time
from typing import Any, ClassVar, Final

from huggingface_hub.utils.tqdm import tqdm as hub_bar
from tqdm.auto import tqdm

_SECONDS: Final = 10.0


class Lines(tqdm):
    """Takes the place of a bar where a log is written: a line each ten seconds, of bytes only."""

    # Of all bars together: the hub's client has two that tell the same.
    _due: ClassVar[float | None] = None

    def display(self, *_: Any, **__: Any) -> None:
        """Write how far it is, unless a line was written just now."""
        now = time.monotonic()
        if Lines._due is None:
            Lines._due = now + _SECONDS
        if self.unit != "B" or not self.total or now < Lines._due:
            return
        Lines._due = now + _SECONDS
        done, total = self.n / 1e6, self.total / 1e6
        print(f"downloaded {done:.0f} of {total:.0f} MB", file=sys.stderr, flush=True)

    def clear(self, *_: Any, **__: Any) -> None:
        """Nothing: lines stay."""

    def close(self) -> None:
        """Nothing: there is no bar to take away."""


def bar_class() -> type[tqdm]:
    """The kind of bar for what standard error is."""
    return hub_bar if sys.stderr.isatty() else Lines
