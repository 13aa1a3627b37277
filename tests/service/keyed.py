"""Gateways that ask for API keys, and those who have one."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import openai

from koala.apikeys import ApiKey, digest
from koala.keyfile import add_key
from koala.settings import Settings
from tests.service.fakes import Served, serving

GENERATIONS = "/v1/images/generations"


def secret_of(name: str) -> str:
    """The secret of the key called ``name``."""
    return f"koala_secret_of_{name}"


def bearer(name: str) -> dict[str, str]:
    """The header that ``name`` sends."""
    return {"Authorization": f"Bearer {secret_of(name)}"}


def make_key(settings: Settings, name: str, *scopes: str, **options: Any) -> None:
    """Put a key into the settings' file; it may draw and read unless told otherwise."""
    assert settings.api_keys_file is not None
    fields = {"scopes": scopes or ("generate", "read"), "sha256": digest(secret_of(name))}
    add_key(settings.api_keys_file, ApiKey.model_validate({"name": name} | fields | options))


def with_keys(settings: Settings, **changes: Any) -> Settings:
    """The same settings with a file of keys: alice and bob, and root, who is an admin."""
    file = settings.data_dir / "keys.json"
    keyed = settings.model_copy(update={"api_keys_file": file} | changes)
    for name in ("alice", "bob"):
        make_key(keyed, name)
    make_key(keyed, "root", "admin")
    return keyed


@contextmanager
def asking(settings: Settings, **changes: Any) -> Iterator[Served]:
    """A gateway that asks for the keys of alice, bob or root."""
    with serving(with_keys(settings, **changes)) as served:
        yield served


def submit(served: Served, name: str, **fields: Any) -> str:
    """Enqueue a job as ``name``; its id."""
    response = post(served, name, **fields)
    assert response.status_code == 202, response.text
    return str(response.json()["id"])


def post(served: Served, name: str | None, **fields: Any) -> httpx.Response:
    """The answer to an asynchronous request of ``name``, or of nobody."""
    headers = {"Prefer": "respond-async"} | ({} if name is None else bearer(name))
    return served.http.post(GENERATIONS, json={"prompt": "a koala"} | fields, headers=headers)


def openai_client(served: Served, name: str, **options: Any) -> openai.OpenAI:
    """The unmodified client of ``name``."""
    return openai.OpenAI(
        base_url=f"{served.base_url}/v1",
        api_key=secret_of(name),
        **{"max_retries": 0} | options,
    )
