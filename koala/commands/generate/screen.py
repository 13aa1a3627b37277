"""What the person at the terminal sees while images are drawn: bars, and previews under them."""

import base64
import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

from PIL import Image
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from koala.commands.generate.pictures import Easel, Picture
from koala.printable import printable

Watch = Callable[[dict[str, Any]], None]


class Screen:
    """A live display at the bottom of a terminal.

    Args:
        console: Where.
        total: Prompts to draw; more than one have a bar of their own.
        easel: Draws previews; ``None``: there are none.
        is_shown: ``False``: nothing is.
    """

    def __init__(
        self, console: Console, total: int, easel: Easel | None, *, is_shown: bool
    ) -> None:
        self._easel = easel
        self._picture: Picture | None = None
        # Previews by prompt and image, in the order of their first.
        self._previews: dict[tuple[TaskID, int], Image.Image] = {}
        self._bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.fields[unit]} {task.completed:g}/{task.fields[of]}", markup=False),
            TextColumn("{task.fields[eta]}", markup=False),
            TimeElapsedColumn(),
            console=console,
        )
        self._console = console
        self._live = Live(self._bars, console=console, transient=True)
        self._is_shown = is_shown
        self._all: TaskID | None = None
        if total > 1:
            self._all = self._add("all", "prompt", total)

    def __enter__(self) -> "Screen":
        if self._is_shown:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._is_shown:
            self._live.stop()
        if self._picture is not None:
            self._picture.cleanup()

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Make way for something on stderr."""
        if not self._is_shown:
            yield
            return
        self._live.stop()
        yield
        # A display that was stopped would begin where it was.
        self._live = Live(self._content(), console=self._console, transient=True)
        self._live.start(refresh=True)

    def begin(self, label: str) -> tuple[TaskID, Watch]:
        """Show one more prompt; what to end it by, and what to tell its events."""
        task = self._add(label if self._all is not None else "sending", "step", None)
        prefix = f"{label}: " if self._all is not None else ""
        return task, lambda event: self._tell(task, prefix, event)

    def end(self, task: TaskID) -> None:
        """Take a prompt away."""
        self._bars.remove_task(task)
        for key in [key for key in self._previews if key[0] == task]:
            del self._previews[key]
        if self._all is not None:
            self._bars.advance(self._all)
        self._draw()

    def _add(self, label: str, unit: str, total: int | None) -> TaskID:
        of = "?" if total is None else total
        return self._bars.add_task(label, total=total, unit=unit, of=of, eta="")

    def _tell(self, task: TaskID, prefix: str, event: dict[str, Any]) -> None:
        match event["type"]:
            case "busy":
                said = f"the server is busy, next try in {event['seconds']:g} s"
            case "queued" | "requeued":
                said = "queued"
            case "position":
                ahead = event["position"]
                said = f"queued, {ahead} ahead" if ahead else "queued, next in line"
            case "admitted" | "step":
                said = "drawing"
            case "cancelling":
                said = "cancelling, Ctrl-C again leaves at once"
            case "preview":
                self._preview(task, event)
                return
            case _:
                return
        self._bars.update(task, description=printable(prefix + said), eta=_eta(event))
        if "steps" in event:
            steps = float(event["steps"])
            self._bars.update(task, completed=event["step"], total=steps, of=f"{steps:g}")

    def _preview(self, task: TaskID, event: dict[str, Any]) -> None:
        if self._easel is None:
            return
        try:
            with Image.open(io.BytesIO(base64.b64decode(event["b64_json"]))) as image:
                self._previews[task, event["image"]] = image.convert("RGB")
        except (ValueError, OSError, SyntaxError, Image.DecompressionBombError):
            # No image is lost with a preview that cannot be shown.
            return
        self._draw()

    def _draw(self) -> None:
        if self._easel is None:
            return
        before = self._picture
        self._picture = None
        if self._previews:
            images = list(self._previews.values())
            self._picture = self._easel.picture(images, lines_taken=len(self._bars.tasks))
        self._live.update(self._content(), refresh=True)
        if before is not None:
            before.cleanup()

    def _content(self) -> RenderableType:
        return self._bars if self._picture is None else Group(self._bars, self._picture)


def _eta(event: dict[str, Any]) -> str:
    seconds = event.get("eta_seconds")
    return "" if seconds is None else f"about {max(1, round(seconds))} s left"
