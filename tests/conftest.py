"""Fixtures that start the real parts: an embedded Valkey server, the whole service."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from koala import embedded
from koala.settings import Settings
from tests.support import Stack, running

for _name in [name for name in os.environ if name.startswith("KOALA_")]:
    del os.environ[_name]
os.environ["HF_HUB_OFFLINE"] = "1"
# Tests run side by side, on machines that do something else too: threads of torch that wait for
# each other lose more than they gain.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


@pytest.fixture(scope="session")
def valkey_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of an embedded server that lasts for the whole run."""
    settings = Settings(data_dir=tmp_path_factory.mktemp("valkey"))
    process = subprocess.Popen(embedded.prepare(settings))
    try:
        embedded.wait_until_ready(settings)
        yield settings.resolved_redis_url
    finally:
        process.terminate()
        process.wait(10)


@pytest.fixture
def valkey_url(valkey_server: str) -> str:
    """URL of the embedded server, emptied for this test."""
    client = redis.Redis.from_url(valkey_server)
    client.flushall()
    client.close()
    return valkey_server


@pytest.fixture
def settings(valkey_url: str, tmp_path: Path) -> Settings:
    """Settings of a service of this test's own."""
    return Settings(redis_url=valkey_url, data_dir=tmp_path)


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The whole service as a user starts it, on a free port."""
    with running(tmp_path_factory.mktemp("stack")) as stack:
        yield stack
