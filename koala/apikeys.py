"""API keys: what they may do, and how they are known again without being kept.

A key's secret is 256 random bits, and only its SHA-256 is stored. A slow hash (argon2, scrypt)
makes up for passwords that can be guessed; nobody guesses 256 bits at any speed, and a slow hash
would cost each request tens of milliseconds.
"""

import hashlib
import re
import secrets
from collections.abc import Iterable
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Final, Literal, Self, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from koala.rates import parse_rate_limit
from koala.spec import Priority

# The most urgent one first.
PRIORITIES: Final[tuple[Priority, ...]] = get_args(Priority)


class Scope(StrEnum):
    """What a key may do."""

    GENERATE = "generate"
    READ = "read"
    ADMIN = "admin"


KEY_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")

_SHORTEST_SECRET: Final = 16
# What a client can send in a header as it stands.
_SENDABLE: Final = re.compile(r"[\x21-\x7e]+")


def _rate_limit(text: str) -> str:
    parse_rate_limit(text)
    return text


class ApiKey(BaseModel):
    """One key as it is stored.

    ``priority`` is the highest that its requests may ask for. ``rate_limit`` and ``max_queued``
    go before ``KOALA_RATE_LIMIT`` and ``KOALA_MAX_QUEUED_PER_KEY``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=f"^{KEY_NAME.pattern}$")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", repr=False)
    scopes: tuple[Scope, ...] = Field(min_length=1)
    priority: Priority = "normal"
    rate_limit: Annotated[str, AfterValidator(_rate_limit)] | None = None
    max_queued: int | None = Field(None, ge=1, le=100_000)
    created_at: datetime | None = None


class KeyFile(BaseModel):
    """The content of ``KOALA_API_KEYS_FILE``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1
    keys: tuple[ApiKey, ...] = ()

    @model_validator(mode="after")
    def _no_duplicates(self) -> Self:
        check_distinct(self.keys)
        return self


def new_secret() -> str:
    """A secret that nobody can guess, in letters that every shell leaves alone."""
    return f"koala_{secrets.token_urlsafe(32)}"


def digest(secret: str) -> str:
    """What is stored of a secret, in hexadecimal."""
    # HTTP headers arrive as Latin-1, whatever they hold.
    return hashlib.sha256(secret.encode("latin-1")).hexdigest()


def parse_keys(text: str) -> tuple[ApiKey, ...]:
    """The keys of ``KOALA_API_KEYS``: ``secret`` or ``name:secret``, separated by commas.

    All of them may do everything. A key without a name gets one from its digest, so that it owns
    the same jobs wherever it stands in the list.

    Raises:
        ValueError: An entry is empty, too short or there twice. The message says which one by its
            place, for a secret must not get into a log.
    """
    keys = tuple(_parse_key(i, entry) for i, entry in enumerate(text.split(","), start=1))
    check_distinct(keys)
    return keys


def check_distinct(keys: Iterable[ApiKey]) -> None:
    """Make sure that no two keys share a name or a secret.

    Raises:
        ValueError: Two of them do.
    """
    names: set[str] = set()
    owners: dict[str, str] = {}
    for key in keys:
        if key.name in names:
            raise ValueError(f"two keys are called {key.name!r}")
        names.add(key.name)
        other = owners.setdefault(key.sha256, key.name)
        if other != key.name:
            raise ValueError(f"the keys {other!r} and {key.name!r} have the same secret")


def _parse_key(place: int, entry: str) -> ApiKey:
    name, colon, secret = entry.strip().rpartition(":")
    if colon and not KEY_NAME.fullmatch(name):
        raise ValueError(
            f"the name of entry {place} must be 1 to 64 letters, digits, dots, dashes and "
            "underscores"
        )
    if not secret:
        raise ValueError(f"entry {place} is empty")
    if len(secret) < _SHORTEST_SECRET:
        raise ValueError(
            f"the secret of entry {place} has {len(secret)} characters; it needs at least "
            f"{_SHORTEST_SECRET}"
        )
    if not _SENDABLE.fullmatch(secret):
        raise ValueError(f"the secret of entry {place} must be ASCII without spaces")
    sha256 = digest(secret)
    return ApiKey(
        name=name or f"key-{sha256[:8]}", sha256=sha256, scopes=tuple(Scope), priority=PRIORITIES[0]
    )
