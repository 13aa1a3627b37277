import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from koala import embedded
from koala.connections import connect
from koala.embedded import EmbeddedServer, EmbeddedServerError
from koala.settings import Settings
from koala.supervisor import PartFailed, Supervisor

# What `koala up` does first, held until stdin is closed.
STARTER = """
import sys
from koala import embedded
from koala.settings import Settings
from koala.supervisor import Supervisor
supervisor = Supervisor(1)
settings = Settings(data_dir=sys.argv[1])
try:
    server = embedded.EmbeddedServer(settings)
    supervisor.add(server)
except embedded.EmbeddedServerError as error:
    print(error, flush=True)
    raise SystemExit(1)
embedded.wait_until_ready(settings)
print(server.process.pid, flush=True)
sys.stdin.read()
supervisor.stop()
"""


def starter(folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", STARTER, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


@pytest.fixture
def supervisor() -> Iterator[Supervisor]:
    supervisor = Supervisor(drain_seconds=1)
    yield supervisor
    supervisor.stop()


def started(supervisor: Supervisor, settings: Settings) -> EmbeddedServer:
    server = EmbeddedServer(settings)
    supervisor.add(server)
    embedded.wait_until_ready(settings)
    return server


def servers_on(folder: Path) -> list[int]:
    """The servers that listen in ``folder``, by what their titles say."""
    found = psutil.process_iter(["cmdline"])
    return [p.pid for p in found if f"unixsocket:{folder}/" in " ".join(p.info["cmdline"] or ())]


def ended(process: subprocess.Popen[str]) -> int:
    """Its exit code, once its stdin is closed."""
    assert process.stdin is not None
    process.stdin.close()
    return process.wait(30)


def test_of_two_that_start_together_one_runs_and_the_other_says_who_does(tmp_path: Path) -> None:
    both = [starter(tmp_path) for _ in range(2)]
    lines = {process: said(process) for process in both}
    [winner] = [process for process in both if lines[process].strip().isdecimal()]
    [loser] = [process for process in both if process is not winner]
    assert lines[loser].startswith(
        f"Another koala is running on {tmp_path} (process {winner.pid}): stop it"
    )
    assert loser.wait(30) == 1
    assert servers_on(tmp_path) == [int(lines[winner])]
    assert ended(winner) == 0
    assert servers_on(tmp_path) == []


def test_however_close_together_many_come_one_gets_the_folder(tmp_path: Path) -> None:
    def try_it(settings: Settings, together: threading.Barrier) -> EmbeddedServer | None:
        together.wait(30)
        try:
            return EmbeddedServer(settings)
        except EmbeddedServerError as error:
            assert str(error).startswith("Another koala is running on")
            return None

    with ThreadPoolExecutor(4) as pool:
        for i in range(25):
            settings, together = Settings(data_dir=tmp_path / str(i)), threading.Barrier(4)
            tries = [pool.submit(try_it, settings, together) for _ in range(4)]
            [server] = [server for each in tries if (server := each.result(30)) is not None]
            server.close()


def test_who_holds_a_data_folder_is_told_by_process_and_address(
    supervisor: Supervisor, tmp_path: Path
) -> None:
    settings = Settings(data_dir=tmp_path)
    started(supervisor, settings).announce("http://127.0.0.1:8123")
    with pytest.raises(EmbeddedServerError) as refusal:
        EmbeddedServer(settings)
    assert str(refusal.value) == (
        f"Another koala is running on {tmp_path} (process {os.getpid()}, http://127.0.0.1:8123): "
        "stop it, or set KOALA_DATA_DIR to another folder."
    )


def test_a_server_that_was_left_alone_keeps_its_folder_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "_ORPHAN_SECONDS", 0.2)
    killed = starter(tmp_path)
    pid = int(said(killed))
    # So that it cannot do what the kernel asks of it when its starter dies.
    os.kill(pid, signal.SIGSTOP)
    killed.kill()
    killed.wait(30)
    try:
        with pytest.raises(EmbeddedServerError, match="that was killed still runs on"):
            EmbeddedServer(Settings(data_dir=tmp_path))
    finally:
        os.kill(pid, signal.SIGCONT)
    # With its end the folder is free, and what comes next does not have to be told.
    monkeypatch.setattr(embedded, "_ORPHAN_SECONDS", 60.0)
    with starter(tmp_path) as following:
        assert int(said(following)) != pid
        assert ended(following) == 0


def restarted(supervisor: Supervisor, server: EmbeddedServer, settings: Settings) -> None:
    """Watch until the server that became unhealthy is a new one that answers."""
    with pytest.MonkeyPatch.context() as impatience:
        impatience.setattr(embedded, "_START_SECONDS", 0.0)
        assert supervisor.wait_for(lambda: server.restarts == 1)
    embedded.wait_until_ready(settings)


def test_a_server_whose_socket_was_deleted_is_restarted_with_its_data(
    supervisor: Supervisor, tmp_path: Path
) -> None:
    settings = Settings(data_dir=tmp_path)
    server = started(supervisor, settings)
    client = connect(settings)
    client.set("job", "1")
    client.close()
    settings.embedded_socket.unlink()
    restarted(supervisor, server, settings)
    client = connect(settings)
    assert client.get("job") == b"1"
    client.close()


def test_a_server_whose_folder_was_deleted_is_restarted_and_locks_the_new_one(
    supervisor: Supervisor, tmp_path: Path
) -> None:
    settings = Settings(data_dir=tmp_path / "data")
    server = started(supervisor, settings)
    (tmp_path / "data").rename(tmp_path / "gone")
    restarted(supervisor, server, settings)
    with pytest.raises(EmbeddedServerError, match="Another koala"):
        EmbeddedServer(settings)


def test_a_folder_that_another_server_took_meanwhile_ends_the_first_in_words(
    supervisor: Supervisor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(data_dir=tmp_path / "data")
    started(supervisor, settings)
    (tmp_path / "data").rename(tmp_path / "gone")
    with starter(tmp_path / "data") as other:
        assert int(said(other))
        monkeypatch.setattr(embedded, "_START_SECONDS", 0.0)
        with pytest.raises(EmbeddedServerError, match="Another koala"):
            supervisor.run()
        assert ended(other) == 0


def test_a_folder_that_a_file_took_the_place_of_ends_the_server_in_words(
    supervisor: Supervisor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started(supervisor, Settings(data_dir=tmp_path / "data"))
    (tmp_path / "data").rename(tmp_path / "gone")
    (tmp_path / "data").touch()
    monkeypatch.setattr(embedded, "_START_SECONDS", 0.0)
    with pytest.raises(EmbeddedServerError, match="Cannot lock the data folder"):
        supervisor.run()


def append_only_folder(settings: Settings) -> Path:
    return settings.data_dir / "valkey" / "appendonlydir"


def test_a_server_that_cannot_read_its_data_says_so_at_once_and_how_to_repair_it(
    tmp_path: Path,
) -> None:
    settings = Settings(data_dir=tmp_path)
    first = Supervisor(1)
    started(first, settings)
    client = connect(settings)
    client.set("job", "1")
    client.close()
    first.stop()
    [log] = append_only_folder(settings).glob("*.incr.aof")
    log.write_bytes(log.read_bytes() + b"garbage" * 20)
    second = Supervisor(1)
    second.add(EmbeddedServer(settings))
    with pytest.raises(PartFailed) as failure:
        second.wait_for(lambda: False)
    second.stop()
    message = str(failure.value)
    assert message.startswith("The embedded server could not start: Bad file format reading")
    # The advice works as it stands.
    command = message[message.index("bash -c ") : message.index(". To start without")]
    assert str(log) in command
    done = subprocess.run(command, shell=True, input="y\n", capture_output=True, text=True)
    assert "Successfully truncated AOF" in done.stdout, done
    third = Supervisor(1)
    started(third, settings)
    client = connect(settings)
    assert client.get("job") == b"1"
    client.close()
    third.stop()


def test_a_server_whose_folder_cannot_be_used_says_so_at_once(
    supervisor: Supervisor, tmp_path: Path
) -> None:
    settings = Settings(data_dir=tmp_path)
    (tmp_path / "valkey").mkdir()
    append_only_folder(settings).write_text("no folder")
    supervisor.add(EmbeddedServer(settings))
    with pytest.raises(PartFailed) as failure:
        supervisor.wait_for(lambda: False)
    assert "Can't open or create append-only dir appendonlydir: Not a directory" in str(
        failure.value
    )
    assert str(tmp_path / "valkey" / "valkey.log") in str(failure.value)


def test_a_server_that_could_not_even_write_its_log_is_told_as_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = EmbeddedServer(Settings(data_dir=tmp_path))
    assert server.last_words() is None
    # In place of a file system of its own, which takes root to mount.
    full = os.statvfs_result((4096, 4096, 100, 0, 0, 10, 0, 0, 0, 255))
    monkeypatch.setattr(os, "statvfs", lambda _: full)
    assert server.last_words() == f"There is no space left on the disk of {tmp_path}."
    server.close()
