"""Progress of a training phase: a rich bar on a terminal, plain log lines elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Final, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import TimeRemainingColumn as Remaining

LOG_SECONDS: Final = 15.0


class Reporter:
    """Show a smoothed loss and how much of the phase's budget is used."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._phase = ""
        self._loss = 0.0
        self._last = (0.0, 0)
        if not quiet and sys.stdout.isatty():
            self._bar = Progress(
                TextColumn("[bold]{task.description}"),
                BarColumn(),
                TextColumn("{task.percentage:>3.0f}%  {task.fields[detail]}"),
                TimeElapsedColumn(),
                Remaining(),
                console=Console(),
            )

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, phase: str, step: int, fraction: float, loss: float) -> None:
        """Report one optimiser step; ``fraction`` of the budget is used, 0..1."""
        if self._quiet:
            return
        if phase != self._phase:
            self._phase, self._loss, self._last = phase, loss, (time.monotonic(), step)
            if self._bar is not None:
                self._task = self._bar.add_task(phase, total=1.0, detail="")
        self._loss += 0.02 * (loss - self._loss)
        then, then_step = self._last
        passed = time.monotonic() - then
        if self._bar is not None and self._task is not None:
            detail = f"step {step}  loss {self._loss:.4f}"
            self._bar.update(self._task, completed=fraction, detail=detail)
        elif passed >= LOG_SECONDS:
            rate = (step - then_step) / passed
            clock = time.strftime("%H:%M:%S")
            self.say(
                f"{clock} {phase} {fraction:6.1%} step {step} "
                f"loss {self._loss:.4f} {rate:.2f} steps/s"
            )
            self._last = (time.monotonic(), step)

    def say(self, message: str) -> None:
        """Print one line, above the bar where there is one."""
        if self._quiet:
            return
        if self._bar is not None:
            self._bar.console.print(message)
        else:
            print(message, flush=True)
