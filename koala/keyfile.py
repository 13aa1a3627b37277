"""The file of API keys: read whole, written whole."""

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pydantic import ValidationError

from koala.apikeys import ApiKey, KeyFile


class KeyFileError(Exception):
    """The file cannot be read, written or understood; the message names it."""


def read_keys(path: Path) -> tuple[ApiKey, ...]:
    """The keys in the file.

    Raises:
        KeyFileError: There is no such file, or it is broken.
    """
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        raise KeyFileError(f"{path} does not exist; `koala keys add NAME` makes it") from None
    except OSError as error:
        raise KeyFileError(f"{path}: {error.strerror}") from None
    try:
        return KeyFile.model_validate_json(text).keys
    except ValidationError as error:
        raise KeyFileError(f"{path} is no file of API keys: {_reason(error)}") from None


def add_key(path: Path, key: ApiKey) -> None:
    """Put a key into the file, which is made if need be.

    Raises:
        KeyFileError: The name is taken, or the file cannot be changed.
    """
    with _changing(path) as keys:
        if any(other.name == key.name for other in keys):
            raise KeyFileError(f"{path} has a key called {key.name!r} already")
        keys.append(key)


def remove_key(path: Path, name: str) -> None:
    """Take a key out of the file.

    Raises:
        KeyFileError: There is no such key, or the file cannot be changed.
    """
    with _changing(path) as keys:
        kept = [key for key in keys if key.name != name]
        if len(kept) == len(keys):
            raise KeyFileError(f"{path} has no key called {name[:64]!r}")
        keys[:] = kept


@contextmanager
def _changing(path: Path) -> Iterator[list[ApiKey]]:
    # A link stays a link; unlike pathlib's, this leaves one that leads to itself to be refused.
    path = Path(os.path.realpath(path))
    try:
        with _locked(path.parent):
            keys = list(read_keys(path)) if os.path.lexists(path) else []
            yield keys
            _replace(path, KeyFile(keys=tuple(keys)))
    except OSError as error:
        raise KeyFileError(f"{path}: {error.strerror}") from None


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep two commands from losing each other's change."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _replace(path: Path, content: KeyFile) -> None:
    # mkstemp's files have mode 0600; a reader sees the old file or the new one, never a half.
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(content.model_dump_json(indent=2) + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        with suppress(OSError):
            os.unlink(temporary)
        raise


def _reason(error: ValidationError) -> str:
    # Without the input, which may be a secret in the wrong place.
    first = error.errors(include_input=False, include_url=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    return f"{where}: {message}" if where else message
