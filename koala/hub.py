"""Models from the Hugging Face hub: found in the cache, downloaded, resumed.

The cache is ``huggingface_hub``'s own (``HF_HOME``), so what other programs fetched is found too.
``HF_ENDPOINT``, ``HF_TOKEN`` and ``HF_HUB_OFFLINE`` work as everywhere. A download names its files
by one commit and notes the commit of a branch last: so a branch always leads to complete files.
"""

import re
import shutil
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from httpx2 import HTTPError, TransportError
from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import repo_folder_name

from koala.blobs import SUFFIX, BlobError, fetch_blob
from koala.checkpoint import CheckpointError, check_weights, files_of
from koala.download_progress import bar_class

MAIN: Final = "main"

_COMMIT: Final = re.compile(r"[0-9a-f]{40}")
# Left free on the disk beside the download.
_RESERVE_BYTES: Final = 2**28

# Which of a repository's files are needed; raises CheckpointError with the model's name.
Selection = Callable[[Collection[str], str], list[str]]


class HubError(Exception):
    """A model cannot be had from the hub; the message is one line for who chose it."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A model on this disk.

    Args:
        folder: Its files, laid out as in the repository.
        commit: The commit that they are of.
        total_bytes: Bytes of the files that are needed.
        fetched_bytes: Bytes of those that had to be downloaded.
    """

    folder: Path
    commit: str
    total_bytes: int
    fetched_bytes: int


def locate(repo: str, revision: str | None, select: Selection) -> Path:
    """The folder of a model: from the cache if it is complete there, else downloaded.

    Raises:
        HubError: It is not in the cache and cannot be downloaded.
        CheckpointError: The repository lacks what is needed.
    """
    found = cached(repo, revision, select)
    return fetch(repo, revision, select).folder if found is None else found


def cached(repo: str, revision: str | None, select: Selection) -> Path | None:
    """The folder of a model that was downloaded before; ``None``: not, or not all of it.

    Args:
        repo: Its hub id.
        revision: Commit, branch or tag; ``None``: the main branch as it was then.
        select: What is needed of it.
    """
    top = _cache_folder(repo)
    commit = revision or MAIN
    if not _COMMIT.fullmatch(commit):
        reference = top / "refs" / commit
        if not reference.is_file():
            return None
        commit = reference.read_text().strip()
    folder = top / "snapshots" / commit
    try:
        select(files_of(folder), repo)
    except CheckpointError:
        return None
    return folder


def fetch(repo: str, revision: str | None, select: Selection) -> Snapshot:
    """Download what is not in the cache yet, and check the weights.

    Args:
        repo: Its hub id.
        revision: Commit, branch or tag; ``None``: the newest commit of the main branch.
        select: What is needed of it.

    Raises:
        HubError: The hub refuses or is out of reach, or the disk is too small.
        CheckpointError: The repository lacks what is needed, or has it broken.
    """
    at = f"{repo} at revision {revision}" if revision else repo
    try:
        info = HfApi().model_info(repo, revision=revision)
    except (HTTPError, HFValidationError, ConnectionError) as error:
        raise HubError(_why_unlisted(at, error)) from error
    commit = info.sha or ""
    names = select([file.rfilename for file in info.siblings or ()], at)
    weights = [name for name in names if name.endswith(".safetensors")]
    try:
        plan = snapshot_download(
            repo, revision=commit, allow_patterns=names, dry_run=True, tqdm_class=bar_class()
        )
        missing = sum(file.file_size or 0 for file in plan if file.will_download)
        _check_disk(repo, at, missing)
        # Weights last: where they are whole, everything is there.
        folder = _place(repo, commit, [name for name in names if name not in weights])
        for name in weights:
            _fetch_weights(repo, commit, name, folder, at)
    except (HTTPError, OSError, BlobError) as error:
        raise HubError(_why_not_downloaded(at, error)) from error
    _note(repo, revision or MAIN, commit)
    return Snapshot(folder, commit, sum(file.file_size or 0 for file in plan), missing)


def _fetch_weights(repo: str, commit: str, name: str, folder: Path, at: str) -> None:
    if (folder / name).exists() and _is_damaged(folder / name):
        # The cache takes whatever has the file's name for the file.
        (folder / name).resolve().unlink()
    if not (folder / name).exists():
        (folder / name).unlink(missing_ok=True)
        fetch_blob(repo, name, commit, _cache_folder(repo) / "blobs", bar_class())
        _place(repo, commit, [name])
    check_weights(folder / name, f"{at} has a broken {name}")


def _place(repo: str, commit: str, names: list[str]) -> Path:
    """Download what is not in the cache, and give it its place in the folder of the commit."""
    return Path(
        snapshot_download(repo, revision=commit, allow_patterns=names, tqdm_class=bar_class())
    )


def _is_damaged(weights: Path) -> bool:
    try:
        check_weights(weights, "")
    except CheckpointError:
        return True
    return False


def _check_disk(repo: str, at: str, missing: int) -> None:
    folder = _cache_folder(repo)
    # What a download that was cut off left is not fetched again.
    left = sum(path.stat().st_size for path in (folder / "blobs").glob(f"*{SUFFIX}"))
    needed = max(0, missing - left) + _RESERVE_BYTES if missing else 0
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise HubError(
            f"{at} does not fit on the disk: {size_text(needed)} are needed in "
            f"{constants.HF_HUB_CACHE}, {size_text(free)} are free; HF_HOME names another folder"
        )


def _note(repo: str, name: str, commit: str) -> None:
    """Let a branch or tag lead to ``commit``, as ``huggingface_hub`` keeps it in its cache."""
    if name != commit:
        reference = _cache_folder(repo) / "refs" / name
        reference.parent.mkdir(parents=True, exist_ok=True)
        reference.write_text(commit)


def _cache_folder(repo: str) -> Path:
    return Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo, repo_type="model")


def _why_unlisted(at: str, error: Exception) -> str:
    match error:
        case GatedRepoError():
            return _gated(at)
        case RevisionNotFoundError():
            return f"there is no such revision on the hub: {at}"
        case RepositoryNotFoundError() | HFValidationError():
            return f"there is neither a folder nor a hub repository {at}"
        case HfHubHTTPError():
            return f"{at} cannot be downloaded: {_one_line(error)}"
        case _:
            return f"{at} is not in the cache and the hub is out of reach"


def _why_not_downloaded(at: str, error: Exception) -> str:
    match error:
        case GatedRepoError():
            return _gated(at)
        case LocalEntryNotFoundError() | TransportError():
            return f"the connection to the hub broke: run it again, {at} goes on where it stopped"
        case _:
            return f"{at} cannot be downloaded: {_one_line(error)}"


def _gated(at: str) -> str:
    return f"{at} is gated: accept its terms on the hub and set HF_TOKEN to a token of yours"


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def size_text(size: int) -> str:
    """Bytes for people, in the decimal units that hubs and disks are sold in."""
    return f"{size / 1e9:.2f} GB" if size >= 5e8 else f"{size / 1e6:.1f} MB"
