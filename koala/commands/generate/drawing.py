"""One piece from its request to its files, while somebody may be watching."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from koala import output_file
from koala.client import Busy, Client
from koala.commands.generate.pieces import Piece
from koala.patience import ServerError

# Somebody who presses Ctrl-C wants to leave.
_CANCEL_SECONDS: Final = 5.0


class DrawingFailed(ServerError):
    """The job ended without images."""


@dataclass(frozen=True, slots=True)
class Saved:
    """An image in its file."""

    path: Path
    seed: int


class NotSaved(Exception):
    """The images are drawn, but not all of them are in files; the message says where they are.

    Args:
        message: Why, and where.
        saved: Those that are.
    """

    def __init__(self, message: str, saved: list[Saved]) -> None:
        super().__init__(message)
        self.saved = saved


@dataclass(slots=True, eq=False)
class Drawing:
    """A piece under way.

    Args:
        piece: What is drawn.
        watch: Hears of everything that happens: the server's events, ``busy`` with the
            ``seconds`` until the next try, and ``cancelling``.
    """

    piece: Piece
    watch: Callable[[dict[str, Any]], None]
    # The job, once there is one.
    job_id: str | None = field(default=None, init=False)
    # What the server says of the images beside giving them.
    warnings: list[str] = field(default_factory=list, init=False)
    # After an interruption: the job's status, or why it could not be cancelled.
    cancelled: str | ServerError | None = field(default=None, init=False)
    _sending: asyncio.Future[str] | None = field(default=None, init=False)

    async def draw(self, client: Client) -> list[Saved]:
        """Draw the piece and write its files. Interrupted, it cancels the job.

        Raises:
            DrawingFailed: The job ended without images.
            NotSaved: The images were drawn, but cannot be fetched or written.
            ServerError: The server refused, or nobody answers.
        """
        try:
            await self._enqueue(client)
            images = await self._images(client)
            return await self._save(client, images)
        except asyncio.CancelledError:
            await self._cancel(client)
            raise

    async def _enqueue(self, client: Client) -> None:
        while self.job_id is None:
            self._sending = asyncio.ensure_future(client.enqueue(self.piece.request))
            try:
                # Not cut short with us: it may have become a job, and only its answer tells which.
                self.job_id = await asyncio.shield(self._sending)
            except Busy as busy:
                self.watch({"type": "busy", "seconds": busy.retry_after})
                await asyncio.sleep(busy.retry_after)

    async def _images(self, client: Client) -> list[dict[str, Any]]:
        assert self.job_id is not None
        end: dict[str, Any] = {}
        async for end in client.follow(self.job_id):
            self.watch(end)
        # A job that expired meanwhile has an error of its own.
        job = end.get("job") or {"status": "failed", "error": end["error"]}
        if job["status"] != "completed":
            reason = job["error"]["message"] if job["error"] else f"it was {job['status']}."
            raise DrawingFailed(f"Job {self.job_id} gave no image: {reason}")
        self.warnings = job["result"]["warnings"]
        images: list[dict[str, Any]] = job["result"]["data"]
        return images

    async def _save(self, client: Client, images: list[dict[str, Any]]) -> list[Saved]:
        saved: list[Saved] = []
        names = self.piece.paths()
        for image in images:
            try:
                data = await client.fetch(image["url"])
                if self.piece.force:
                    path = next(names)
                    output_file.replace(path, data)
                else:
                    path = output_file.write_new(names, data)
            except OSError as error:
                reason = f"{error.filename}: {error.strerror}."
                raise NotSaved(self._rescue(client, reason, images[len(saved) :]), saved) from None
            except ServerError as error:
                raise NotSaved(
                    self._rescue(client, str(error), images[len(saved) :]), saved
                ) from None
            saved.append(Saved(path, image["seed"]))
        return saved

    def _rescue(self, client: Client, reason: str, images: list[dict[str, Any]]) -> str:
        urls = ", ".join(image["url"] for image in images)
        assert self.job_id is not None
        return f"{reason} What was drawn is at {urls} (job {client.job_url(self.job_id)})."

    async def _cancel(self, client: Client) -> None:
        self.watch({"type": "cancelling"})
        try:
            async with asyncio.timeout(_CANCEL_SECONDS):
                if self._sending is not None:
                    with suppress(Busy):
                        self.job_id = await self._sending
                if self.job_id is not None:
                    self.cancelled = await client.cancel(self.job_id)
        except TimeoutError:
            self.cancelled = ServerError("The server does not answer.")
        except ServerError as error:
            self.cancelled = error
