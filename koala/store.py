"""The image store: a folder, or anything else that fsspec reaches."""

import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final
from uuid import uuid4

import fsspec

from koala.errors import ImageNotFound
from koala.private_folder import make_private

IMAGE_NAME: Final = re.compile(r"[0-9a-f]{32}-\d{1,2}\.(png|jpeg|webp)")
_HALF: Final = re.compile(rf"\.{IMAGE_NAME.pattern}\.[0-9a-f]{{8}}")
# What a probe writes, whole and half: no image has such a name.
_PROBE: Final = re.compile(r"\.probe-[0-9a-f]{16}|\.\.probe-[0-9a-f]{16}\.[0-9a-f]{8}")
_PROBE_BYTES: Final = 64
# Where an object is there as a whole or not at all, and where moving it means to copy it.
_OBJECT_STORES: Final = frozenset({"s3", "s3a", "gs", "gcs", "abfs", "az", "memory"})
MEDIA_TYPES: Final = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}


class ImageStore:
    """Puts and gets whole images by name. Its calls block; async callers use a thread.

    Args:
        url: A folder or an fsspec URL such as ``s3://bucket/images``.
    """

    def __init__(self, url: str) -> None:
        # A listing that is kept would hide what others store from then on.
        self._fs, self._root = fsspec.core.url_to_fs(url, use_listings_cache=False)
        protocols = self._fs.protocol
        protocols = {protocols} if isinstance(protocols, str) else set(protocols)
        self._is_local = "file" in protocols
        self._is_object_store = not protocols.isdisjoint(_OBJECT_STORES)

    def put(self, name: str, data: bytes) -> None:
        """Store ``data`` under ``name``, replacing what is there, all or nothing.

        Raises:
            ValueError: ``name`` is no image name.
            OSError: The store is full, read-only or out of reach.
        """
        if not IMAGE_NAME.fullmatch(name):
            raise ValueError(f"not an image name: {name!r}")
        with _os_errors():
            self._write(f"{self._root}/{name}", data)

    def probe(self) -> None:
        """Write a small object, read it back and delete it, as images are.

        It has a name that no image has; one that is left behind is removed like half an image.

        Raises:
            OSError: The store cannot be used; the message says what it refused, and why.
        """
        path = f"{self._root}/.probe-{secrets.token_hex(8)}"
        data = secrets.token_bytes(_PROBE_BYTES)
        with _refused("written"):
            self._write(path, data)
        with _refused("read"):
            found = self._fs.cat_file(path)
        with _refused("deleted"):
            self._fs.rm_file(path)
        if found != data:
            raise OSError("it gives back other bytes than were written")

    def _write(self, path: str, data: bytes) -> None:
        if self._is_object_store:
            self._fs.pipe_file(path, data)
        else:
            self._put_file(path, data)

    def _put_file(self, path: str, data: bytes) -> None:
        # A reader must never see half a file, so the bytes arrive under a name nobody asks for.
        folder, name = path.rsplit("/", 1)
        temporary = f"{folder}/.{name}.{uuid4().hex[:8]}"
        if self._is_local:
            # Images are their owners': on a machine with other users, none of theirs.
            make_private(Path(folder))
        else:
            self._fs.makedirs(folder, exist_ok=True)
        try:
            self._fs.pipe_file(temporary, data)
            self._fs.mv(temporary, path)
        except OSError:
            # A full disk must not fill up further with halves.
            with suppress(OSError):
                self._fs.rm_file(temporary)
            raise

    def get(self, name: str) -> bytes:
        """The bytes of an image.

        Raises:
            ImageNotFound: There is no such image, or ``name`` is no image name.
            OSError: The store is out of reach.
        """
        if not IMAGE_NAME.fullmatch(name):
            raise ImageNotFound(f"There is no image {name[:80]!r}.", param="name")
        try:
            with _os_errors():
                data: bytes = self._fs.cat_file(f"{self._root}/{name}")
        except FileNotFoundError:
            raise ImageNotFound(
                f"There is no image {name[:80]!r}: it never was, or it has expired.", param="name"
            ) from None
        return data

    def delete(self, name: str) -> None:
        """Remove an image, a half of one or what a probe left behind, if it is there.

        Raises:
            ValueError: ``name`` is the name of none of them.
            OSError: The store is read-only or out of reach.
        """
        if not _is_ours(name):
            raise ValueError(f"not an image name: {name!r}")
        with suppress(FileNotFoundError), _os_errors():
            self._fs.rm_file(f"{self._root}/{name}")

    def names(self) -> list[str]:
        """Names of all images, and of what killed processes left of images and probes.

        Other files are left out.

        Raises:
            OSError: The store is out of reach.
        """
        try:
            with _os_errors():
                paths = self._fs.ls(self._root, detail=False, refresh=True)
        except FileNotFoundError:
            return []
        return [name for path in paths if _is_ours(name := path.rsplit("/", 1)[-1])]

    @staticmethod
    def media_type(name: str) -> str:
        """The media type of an image, from its name."""
        return MEDIA_TYPES[name.rsplit(".", 1)[1]]


def _is_ours(name: str) -> bool:
    return any(kind.fullmatch(name) for kind in (IMAGE_NAME, _HALF, _PROBE))


@contextmanager
def _refused(what: str) -> Iterator[None]:
    try:
        with _os_errors():
            yield
    except OSError as error:
        raise OSError(f"nothing can be {what} there: {error.strerror or error}") from error


@contextmanager
def _os_errors() -> Iterator[None]:
    """Let nothing but ``OSError`` through: each remote store's client has errors of its own."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        raise OSError(" ".join(str(error).split()) or type(error).__name__) from error
