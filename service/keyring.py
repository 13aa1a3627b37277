"""The API keys that are valid right now."""

import hmac
import os
import time
from pathlib import Path
from typing import Final

import structlog

from koala.apikeys import ApiKey, check_distinct, digest, parse_keys
from koala.keyfile import KeyFileError, read_keys
from koala.settings import Settings

log = structlog.get_logger()

_LOOK_SECONDS: Final = 1.0

# What tells one version of a file from another; None: there is no file.
_Version = tuple[int, int, int] | None


class Keyring:
    """Knows keys by their secrets; notices within a second when their file changes.

    A file that is broken later on changes nothing: the last good keys stay valid.

    Args:
        settings: Where the keys are.

    Raises:
        KeyFileError: The file of keys is missing, broken, or at odds with ``KOALA_API_KEYS``.
    """

    def __init__(self, settings: Settings) -> None:
        given = settings.api_keys
        self._given = () if given is None else parse_keys(given.get_secret_value())
        self._path = settings.api_keys_file
        self._version = None if self._path is None else _version(self._path)
        self._looked_at = time.monotonic()
        self._keys = self._given if self._path is None else self._with_file(self._path)

    def find(self, secret: str) -> ApiKey | None:
        """The key with this secret, or ``None``; the time it takes tells nothing of the keys."""
        self._refresh()
        wanted = digest(secret)
        found = None
        for key in self._keys:
            # To the end of the list, whatever was found.
            if hmac.compare_digest(key.sha256, wanted):
                found = key
        return found

    def _refresh(self) -> None:
        if self._path is None or time.monotonic() - self._looked_at < _LOOK_SECONDS:
            return
        self._looked_at = time.monotonic()
        version = _version(self._path)
        if version == self._version:
            return
        # Remembered even if the file is broken, so that one mistake is one line in the log.
        self._version = version
        try:
            self._keys = self._with_file(self._path)
        except KeyFileError as error:
            log.error("the API keys stay as they were", reason=str(error))
        else:
            log.info("API keys read", keys=len(self._keys))

    def _with_file(self, path: Path) -> tuple[ApiKey, ...]:
        keys = (*self._given, *read_keys(path))
        try:
            check_distinct(keys)
        except ValueError as error:
            raise KeyFileError(f"{path} and KOALA_API_KEYS: {error}") from None
        return keys


def _version(path: Path) -> _Version:
    try:
        stat = os.stat(path)
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_size, stat.st_ino
