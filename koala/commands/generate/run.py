"""Draws all pieces, several at once, and says what came of them."""

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from PIL import Image
from rich.console import Console

from koala.client import Client, Refused, url_problem
from koala.commands.generate.drawing import Drawing, DrawingFailed, NotSaved, Saved
from koala.commands.generate.pictures import Easel, why_not
from koala.commands.generate.pieces import Piece, UsageError
from koala.commands.generate.screen import Screen
from koala.console import complain, say
from koala.patience import ServerError
from koala.printable import json_line

# So many the server can batch; more would only push others back.
_MOST_IN_FLIGHT: Final = 8
_PREVIEWS: Final = 8
_INTERRUPTED: Final = 130


def run(
    pieces: Sequence[Piece],
    url: str,
    api_key: str | None,
    console: Console,
    *,
    preview: bool | None,
    as_json: bool,
) -> int:
    """Draw all pieces.

    Args:
        pieces: What to draw, in order.
        url: The gateway.
        api_key: What it knows us by, where it asks.
        console: Where to say what was written.
        preview: Show pictures in the terminal; ``None``: where it can.
        as_json: Print a line of JSON for each piece instead.

    Returns:
        The exit code: 0, 1 if anything failed, 130 after Ctrl-C.

    Raises:
        UsageError: Pictures are asked for where there can be none, or the address or the key
            cannot be one.
    """
    problem = url_problem(url)
    if problem is not None:
        raise UsageError(f"--url: {url}: {problem}.")
    if api_key is not None and not api_key.isprintable():
        raise UsageError("--api-key: it has characters that no key has, such as a line's end.")
    obstacle = "--json is for programs" if as_json else why_not(console)
    if preview and obstacle is not None:
        raise UsageError(f"--preview: {obstacle}.")
    easel = None
    if preview is not False and obstacle is None:
        easel = Easel(console)
        pieces = [replace(p, request={**p.request, "previews": _PREVIEWS}) for p in pieces]
    return _Session(pieces, console, easel, as_json).run(url, api_key)


@dataclass(slots=True)
class _Session:
    """One run of the command."""

    pieces: Sequence[Piece]
    console: Console
    easel: Easel | None
    as_json: bool
    drawn: int = field(default=0, init=False)
    failed: int = field(default=0, init=False)
    _drawings: list[Drawing] = field(default_factory=list, init=False)
    # Why no more pieces are begun.
    _stopped: ServerError | NotSaved | None = field(default=None, init=False)
    _saved: list[Saved] = field(default_factory=list, init=False)

    def run(self, url: str, api_key: str | None) -> int:
        # Of asyncio: the first Ctrl-C cancels the task, and so the jobs; a second one leaves.
        try:
            asyncio.run(self._draw_all(url, api_key))
        except KeyboardInterrupt:
            self._tell_of_the_interruption()
            return _INTERRUPTED
        if len(self.pieces) > 1 and not self.as_json:
            self.console.print(self._summary())
        elif self.easel is not None and self._saved:
            self._show(self.easel)
        return 1 if self.failed else 0

    def _show(self, easel: Easel) -> None:
        try:
            images = list(map(_open, self._saved))
        except (ValueError, OSError, SyntaxError, Image.DecompressionBombError):
            complain("What came is in the files, but is no image that can be shown.")
        else:
            self.console.print(easel.picture(images))

    async def _draw_all(self, url: str, api_key: str | None) -> None:
        is_shown = self.console.is_terminal and not self.as_json
        screen = Screen(self.console, len(self.pieces), self.easel, is_shown=is_shown)
        waiting = iter(self.pieces)
        async with Client(url, api_key) as client:
            with screen:
                async with asyncio.TaskGroup() as group:
                    for _ in range(min(_MOST_IN_FLIGHT, len(self.pieces))):
                        group.create_task(self._draw_some(waiting, client, screen))

    async def _draw_some(self, waiting: Iterator[Piece], client: Client, screen: Screen) -> None:
        for piece in waiting:
            if self._stopped is not None:
                return
            task, watch = screen.begin(piece.label)
            drawing = Drawing(piece, watch)
            self._drawings.append(drawing)
            try:
                outcome: list[Saved] | ServerError | NotSaved = await drawing.draw(client)
            except (ServerError, NotSaved) as error:
                outcome = error
            self._drawings.remove(drawing)
            screen.end(task)
            if isinstance(outcome, list):
                self._note_images(drawing, outcome)
            else:
                with screen.aside():
                    self._note_failure(drawing, outcome)

    def _note_images(self, drawing: Drawing, saved: list[Saved]) -> None:
        self.drawn += 1
        self._saved = saved
        self._print_json(drawing, "completed", saved)
        self._print_files(saved)
        if not self.as_json:
            for warning in drawing.warnings:
                self._complain(drawing, warning)

    def _print_files(self, saved: Sequence[Saved]) -> None:
        if self.as_json:
            return
        for each in saved:
            say(f"{each.path}  seed {each.seed}", self.console)

    def _note_failure(self, drawing: Drawing, error: ServerError | NotSaved) -> None:
        self.failed += 1
        saved = error.saved if isinstance(error, NotSaved) else []
        self._print_json(drawing, "failed", saved, str(error))
        self._print_files(saved)
        if isinstance(error, (DrawingFailed, Refused, NotSaved)):
            self._complain(drawing, str(error))
        elif self._stopped is None:
            complain(str(error))
        if not isinstance(error, (DrawingFailed, Refused)):
            # The next ones would fare alike, and those under way do.
            self._stopped = error

    def _complain(self, drawing: Drawing, message: str) -> None:
        label = f"{drawing.piece.label}: " if len(self.pieces) > 1 else ""
        complain(label + message)

    def _print_json(
        self, drawing: Drawing, status: str, saved: Sequence[Saved], error: str | None = None
    ) -> None:
        if not self.as_json:
            return
        line = {
            "prompt": drawing.piece.request["prompt"],
            "job_id": drawing.job_id,
            "status": status,
            "files": [{"path": str(each.path), "seed": each.seed} for each in saved],
            "error": error,
        }
        # Not through rich, which would wrap it.
        print(json_line(line), file=self.console.file, flush=True)

    def _summary(self) -> str:
        total = len(self.pieces)
        said = f"{self.drawn} of {total} prompts drawn"
        if self.failed:
            said += f", {self.failed} failed"
        left = total - self.drawn - self.failed
        return said + (f", {left} not tried." if left else ".")

    def _tell_of_the_interruption(self) -> None:
        for drawing in self._drawings:
            match drawing.cancelled:
                case "cancelled":
                    self._print_json(drawing, "cancelled", [])
                    self._complain(drawing, f"Job {drawing.job_id} was cancelled.")
                case None if drawing.job_id is not None:
                    self._complain(drawing, f"Job {drawing.job_id} goes on.")
                case None:
                    self._complain(drawing, "No job was sent.")
                case ServerError() as error:
                    job = f"Job {drawing.job_id}" if drawing.job_id else "What was sent"
                    self._complain(drawing, f"{job} may go on, it was not cancelled: {error}")
                case status:
                    self._complain(drawing, f"Job {drawing.job_id} is {status} already.")


def _open(saved: Saved) -> Image.Image:
    with Image.open(saved.path) as image:
        return image.convert("RGB")
