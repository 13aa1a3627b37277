"""``koala download``: a model's files onto this disk, so that workers start without the hub."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from koala import hub
from koala.catalogue import HubSource, ModelCard, resolve
from koala.checkpoint import CheckpointError, check_folder, pipeline_files, vae_files
from koala.console import say
from koala.errors import ModelNotFound


class CannotDownload(Exception):
    """The model cannot be had, or is not whole; the message is one line."""


@dataclass(frozen=True, slots=True)
class _Wanted:
    """One repository of a model."""

    source: HubSource
    select: hub.Selection


def run(model: str, revision: str | None, console: Console) -> None:
    """Download what a worker needs of ``model``; of a folder, check that it is whole.

    Args:
        model: A name from ``koala models``, a hub id, or a diffusers folder.
        revision: Commit, branch or tag instead of the catalogue's.
        console: Where to say what was done.

    Raises:
        CannotDownload: It cannot be had, or lacks what a worker needs.
    """
    try:
        card = resolve(model, revision)
        if Path(card.source).is_dir():
            check_folder(Path(card.source), card.source)
            _say(console, f"{card.id} is a folder, nothing to download: {card.source} is whole.")
            return
        _say(console, _about(card))
        for wanted in _repositories(card):
            repo, pinned = wanted.source.repo, wanted.source.revision
            snapshot = hub.fetch(repo, pinned, wanted.select)
            fetched = hub.size_text(snapshot.fetched_bytes) if snapshot.fetched_bytes else "nothing"
            _say(console, f"{repo} at {snapshot.commit}: {fetched} fetched, now in")
            _say(console, f"  {snapshot.folder}")
            if pinned is None:
                _say(
                    console,
                    "  No revision is known for it here, so this was its newest; to keep to it, "
                    f"set KOALA_MODEL_REVISION={snapshot.commit}",
                )
    except ModelNotFound as error:
        raise CannotDownload(error.message) from None
    except (hub.HubError, CheckpointError) as error:
        raise CannotDownload(str(error)) from None
    _say(console, f"Workers with KOALA_MODEL={model} now start without the hub.")


def _repositories(card: ModelCard) -> Iterator[_Wanted]:
    """The model, and once that is here the VAE that takes its own's place in fp16."""
    yield _Wanted(HubSource(repo=card.source, revision=card.revision), pipeline_files)
    folder = hub.cached(card.source, card.revision, pipeline_files)
    if card.fp16_vae is not None and folder is not None and _overflows(folder):
        yield _Wanted(card.fp16_vae, vae_files)


def _overflows(folder: Path) -> bool:
    try:
        config = json.loads((folder / "vae" / "config.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{folder} has a broken vae/config.json: {error}") from None
    return bool(config.get("force_upcast", True))


def _about(card: ModelCard) -> str:
    size = f", about {hub.size_text(card.download_bytes)}" if card.download_bytes else ""
    terms = f"; licence: {card.license}" if card.license else "; its licence is on the hub"
    return f"{card.id} from {card.source}{size}{terms}"


def _say(console: Console, text: str) -> None:
    say(text, console)
