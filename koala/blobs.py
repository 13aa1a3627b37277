"""Large files of the hub's cache, fetched so that a later process goes on where one was ended.

``huggingface_hub`` resumes within a process only: what it has of a file goes with it. So weights
are written here, under the name that its cache gives them, and it finds them there. Plain HTTP is
used, Xet is not.
"""

import fcntl
import hashlib
import re
from pathlib import Path
from typing import Final

from huggingface_hub import get_hf_file_metadata, hf_hub_url
from huggingface_hub.file_download import http_get
from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]
from tqdm.auto import tqdm

SUFFIX: Final = ".koala-part"

_SHA256: Final = re.compile(r"[0-9a-f]{64}")


class BlobError(Exception):
    """The hub sent something else than it said; the message names the file."""


def fetch_blob(
    repo: str, name: str, commit: str, blobs: Path, bar: type[tqdm] | None = None
) -> Path:
    """Download one file into the folder of blobs, unless it is there; its path.

    Of several processes one downloads and the others wait for it.

    Args:
        repo: The hub id.
        name: The file, relative to the repository's top.
        commit: Of the repository.
        blobs: The ``blobs`` folder of the repository in the cache.
        bar: What shows the progress.

    Raises:
        BlobError: The content is not what the hub announced.
        httpx2.HTTPError: The hub refuses, or the connection breaks again and again.
        OSError: The file cannot be written.
    """
    url = hf_hub_url(repo, name, revision=commit)
    told = get_hf_file_metadata(url)
    if told.etag is None or told.size is None:
        raise BlobError(f"the hub does not say what {name} is")
    blob = blobs / told.etag
    blobs.mkdir(parents=True, exist_ok=True)
    partial = blob.with_name(told.etag + SUFFIX)
    # Closed, and with that unlocked, when the block is left.
    with partial.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        if blob.exists():
            # Another process had the lock. What was opened here is its file, or a new empty one.
            if partial.exists() and not partial.stat().st_size:
                partial.unlink()
            return blob
        http_get(
            url,
            file,
            resume_size=file.tell(),
            headers=build_hf_headers(),
            expected_size=told.size,
            displayed_filename=name,
            tqdm_class=bar,
        )
        file.flush()
        if _SHA256.fullmatch(told.etag) and _digest(partial) != told.etag:
            partial.unlink()
            raise BlobError(f"what arrived of {name} is not what the hub has: run it again")
        partial.rename(blob)
    return blob


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
