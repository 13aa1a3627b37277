"""The embedded server's socket: the server that answers on it has to be this user's."""

import asyncio
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from koala import embedded
from koala.connections import connect, connect_async
from koala.embedded import EmbeddedServer, EmbeddedServerError
from koala.settings import Settings
from koala.supervisor import Supervisor


@pytest.fixture
def deep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Settings]:
    """Settings whose socket lies in the temporary directory, which is this test's own."""
    # A socket's path has 107 bytes at most, and the folder of a test takes up to 80 of them.
    with tempfile.TemporaryDirectory(prefix="k-") as shared:
        monkeypatch.setattr(tempfile, "tempdir", shared)
        settings = Settings(data_dir=tmp_path / ("x" * 120))
        assert settings.embedded_socket.parent.parent == Path(shared)
        yield settings


@pytest.fixture
def running(deep: Settings) -> Iterator[Settings]:
    supervisor = Supervisor(drain_seconds=1)
    supervisor.add(EmbeddedServer(deep))
    embedded.wait_until_ready(deep)
    yield deep
    supervisor.stop()


def ask(settings: Settings) -> bool:
    client = connect(settings)
    try:
        return bool(client.ping())
    finally:
        client.close()


def ask_async(settings: Settings) -> bool:
    async def main() -> bool:
        client = connect_async(settings)
        try:
            return bool(await client.ping())
        finally:
            await client.aclose()

    return asyncio.run(main())


def link(folder: Path) -> None:
    elsewhere = folder.with_name("elsewhere")
    if folder.exists():
        folder.rename(elsewhere)
    else:
        elsewhere.mkdir(0o700)
    folder.symlink_to(elsewhere)


def open_to_all(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    folder.chmod(0o777)


def open_to_the_group(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    folder.chmod(0o770)


def give_away(folder: Path) -> None:
    folder.mkdir(exist_ok=True, mode=0o700)
    os.chown(folder, 12345, -1)


INTRUSIONS = [
    pytest.param(link, "it is a link", id="link"),
    pytest.param(open_to_all, "others may write to it (mode 777)", id="open"),
    pytest.param(open_to_the_group, "others may write to it (mode 770)", id="group"),
    pytest.param(
        give_away,
        "it belongs to another user (uid 12345)",
        id="owner",
        marks=pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away"),
    ),
]


def test_both_clients_reach_the_embedded_server(running: Settings) -> None:
    assert ask(running)
    assert ask_async(running)


@pytest.mark.parametrize(("intrude", "reason"), INTRUSIONS)
def test_no_client_speaks_to_a_socket_that_another_user_may_have_made(
    running: Settings, intrude: object, reason: str
) -> None:
    assert callable(intrude)
    intrude(running.embedded_socket.parent)
    for way in (ask, ask_async):
        with pytest.raises(redis.exceptions.ConnectionError) as refusal:
            way(running)
        assert reason in str(refusal.value)
        assert str(running.embedded_socket.parent) in str(refusal.value)


@pytest.mark.parametrize(("intrude", "reason"), INTRUSIONS)
def test_no_server_listens_in_a_folder_that_another_user_made_first(
    deep: Settings, intrude: object, reason: str
) -> None:
    assert callable(intrude)
    intrude(deep.embedded_socket.parent)
    with pytest.raises(EmbeddedServerError) as refusal:
        embedded.prepare(deep)
    assert reason in str(refusal.value)


def test_a_data_folder_that_every_user_may_write_to_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o1777)
    settings = Settings(data_dir=tmp_path)
    with pytest.raises(EmbeddedServerError, match="chmod o-w"):
        embedded.prepare(settings)
    with pytest.raises(redis.exceptions.ConnectionError, match="chmod o-w"):
        ask(settings)


def test_a_folder_with_odd_characters_in_its_name_is_found(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path / "100%41 of #1?")
    supervisor = Supervisor(drain_seconds=1)
    supervisor.add(EmbeddedServer(settings))
    try:
        embedded.wait_until_ready(settings)
        assert ask(settings)
        assert ask_async(settings)
    finally:
        supervisor.stop()


def test_what_is_made_anew_is_private_and_what_was_there_is_left_as_it_is(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "parent" / "new"
    old.mkdir(0o755)
    for folder in (old, new):
        embedded.prepare(Settings(data_dir=folder))
    modes = [path.stat().st_mode & 0o777 for path in (old, old / "valkey", new, new.parent)]
    assert modes == [0o755, 0o700, 0o700, 0o700]
