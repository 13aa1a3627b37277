"""``koala up``: the whole service on one machine, supervised."""

import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import httpx
import redis
from pydantic import SecretStr
from rich.markup import escape

from koala import embedded, logs, processors
from koala.catalogue import resolve
from koala.connections import connect
from koala.console import complain, err, say
from koala.descriptors import raise_descriptor_limit
from koala.errors import ModelNotFound
from koala.keyfile import KeyFileError, read_keys
from koala.printable import printable
from koala.settings import Settings
from koala.supervisor import Part, PartFailed, Supervisor

# For the embedded server to listen; reading its data may take longer, which it says.
_LISTEN_SECONDS: Final = 30.0
_LAST_PORT: Final = 65_535


def run(settings: Settings) -> int:
    """Run all parts until Ctrl-C or SIGTERM; the exit code.

    Problems that a restart cannot cure (a taken port, an unreachable Redis, an unknown model)
    are one line on stderr and exit code 1.
    """
    logs.configure(settings)
    # The parts inherit it.
    raise_descriptor_limit()
    supervisor = Supervisor(settings.drain_seconds)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: supervisor.request_stop())
    try:
        _check(settings)
        # Before the port is looked at: that is taken too where the same koala runs already.
        server = _embedded_server(settings)
        settings = settings.model_copy(update={"port": _free_port(settings)})
        _check_metrics_ports(settings)
        if _start(supervisor, settings, server):
            say(f"koala: loading {settings.model} ...", err)
            if supervisor.wait_for(lambda: _is_ready(settings)):
                err.print(_welcome(settings), soft_wrap=True)
        supervisor.run()
        err.print("koala: stopping")
        return 0
    except (PartFailed, _CannotStart, embedded.EmbeddedServerError, ModelNotFound) as error:
        complain(str(error))
        return 1
    finally:
        supervisor.stop()


class _CannotStart(Exception):
    """A check before the start failed."""


def _check(settings: Settings) -> None:
    resolve(settings.model, settings.model_revision)
    if settings.exposure is not None:
        raise _CannotStart(settings.exposure)
    if settings.api_keys_file is not None:
        _check_keys(settings.api_keys_file)
    if settings.redis_url is not None:
        _check_redis(settings)


def _check_keys(path: Path) -> None:
    try:
        read_keys(path)
    except KeyFileError as error:
        raise _CannotStart(f"KOALA_API_KEYS_FILE: {error}.") from None


def _free_port(settings: Settings) -> int:
    try:
        return _try_port(settings.host, settings.port)
    except OSError as error:
        raise _CannotStart(
            f"Cannot listen on {settings.host}:{settings.port}: {error.strerror}. Set KOALA_HOST "
            "or KOALA_PORT to something else."
        ) from None


def _check_metrics_ports(settings: Settings) -> None:
    host, first = settings.metrics_host, settings.metrics_port
    if first + settings.workers - 1 > _LAST_PORT:
        raise _CannotStart(
            f"KOALA_METRICS_PORT {first} leaves no ports for the metrics of {settings.workers} "
            "workers: set a lower one."
        )
    for port in range(first, first + settings.workers) if first else [0]:
        try:
            _try_port(host, port)
        except OSError as error:
            raise _CannotStart(
                f"Cannot serve a worker's metrics on {host}:{port}: {error.strerror}. Set "
                "KOALA_METRICS_HOST or KOALA_METRICS_PORT to something else."
            ) from None


def _try_port(host: str, port: int) -> int:
    """Listen for a moment; the port, which is a free one where 0 was asked for.

    Raises:
        OSError: The port is taken, or there is no such address.
    """
    [(family, _, _, _, address), *_] = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(address)
        probe.listen()
        found: int = probe.getsockname()[1]
    return found


def _check_redis(settings: Settings) -> None:
    try:
        client = connect(settings)
    except ValueError as error:
        raise _CannotStart(f"KOALA_REDIS_URL: {error}.") from None
    try:
        client.ping()
    except redis.RedisError as error:
        raise _CannotStart(f"No Redis at KOALA_REDIS_URL: {error}") from None
    finally:
        client.close()


def _embedded_server(settings: Settings) -> embedded.EmbeddedServer | None:
    """The locked server, not started yet; ``None`` where a Redis is configured."""
    return embedded.EmbeddedServer(settings) if settings.redis_url is None else None


def _start(
    supervisor: Supervisor, settings: Settings, server: embedded.EmbeddedServer | None
) -> bool:
    """Start all parts; false if a stop was asked for first."""
    if server is not None:
        server.announce(_base_url(settings))
        supervisor.add(server)
        if not supervisor.wait_for(_answering(settings)):
            return False
    env = _environment(settings)
    koala = [sys.executable, "-m", "koala"]
    supervisor.add(Part("gateway", [*koala, "serve"], env))
    for i in range(settings.workers):
        name = "worker" if settings.workers == 1 else f"worker {i + 1}"
        supervisor.add(Part(name, [*koala, "work"], env | _share(settings, i)))
    return True


def _answering(settings: Settings) -> Callable[[], bool]:
    """Whether the embedded server answers; reading its data may take as long as it likes."""
    deadline = time.monotonic() + _LISTEN_SECONDS

    def is_answering() -> bool:
        try:
            return embedded.answers(settings)
        except redis.exceptions.BusyLoadingError:
            return False
        except (redis.exceptions.ConnectionError, redis.exceptions.TimeoutError) as error:
            if time.monotonic() < deadline:
                return False
            raise embedded.EmbeddedServerError(
                f"The embedded server did not answer within {_LISTEN_SECONDS:g} s: {error}"
            ) from None

    return is_answering


def _share(settings: Settings, index: int) -> dict[str, str]:
    """What worker ``index`` gets of the machine, where the settings leave it open."""
    share = {}
    if settings.metrics_port:
        share["KOALA_METRICS_PORT"] = str(settings.metrics_port + index)
    if settings.workers > 1:
        # The driver's own list: asking torch would cost seconds and memory here.
        gpus = len(list(Path("/proc/driver/nvidia/gpus").glob("*")))
        if settings.device == "auto" and gpus > 1:
            share["KOALA_DEVICE"] = f"cuda:{index % gpus}"
        if settings.torch_threads is None:
            cores = processors.available()
            share["KOALA_TORCH_THREADS"] = str(max(1, cores // settings.workers))
    return share


def _environment(settings: Settings) -> dict[str, str]:
    # The parts read the same settings as we did, options of the command line included.
    values = settings.model_dump(mode="json")
    # As JSON a secret is asterisks.
    values |= {
        name: value.get_secret_value() for name, value in settings if isinstance(value, SecretStr)
    }
    ours = {
        f"KOALA_{name.upper()}": value if isinstance(value, str) else json.dumps(value)
        for name, value in values.items()
        if value is not None
    }
    return {**os.environ, **ours, "KOALA_DATA_DIR": str(settings.data_dir.resolve())}


def _base_url(settings: Settings) -> str:
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return f"http://{'127.0.0.1' if host in ('0.0.0.0', '[::]') else host}:{settings.port}"


def _is_ready(settings: Settings) -> bool:
    try:
        # No proxy stands between us and our own gateway, whatever the environment says.
        return httpx.get(f"{_base_url(settings)}/readyz", timeout=2, trust_env=False).is_success
    except httpx.HTTPError:
        return False


def _welcome(settings: Settings) -> str:
    base = _base_url(settings)
    card = resolve(settings.model, settings.model_revision)
    prompt = "a koala on a blue background" if card.id == "koala-demo" else "a koala in a tree"
    key = " -H 'Authorization: Bearer YOUR_KEY'" if settings.login_required else ""
    key_again = f"{key} " if settings.private_images else ""
    name = escape(printable(card.id))
    return (
        f"\n[bold green]koala is ready[/bold green] with {name} at [bold]{base}[/bold]  "
        "(Ctrl-C stops it)\n\n"
        f"  curl -s {base}/v1/images/generations -H 'Content-Type: application/json'{key} \\\n"
        f'    -d \'{{"prompt": "{prompt}"}}\' | grep -o \'http[^"]*png\' | '
        f"xargs curl{key_again} -so koala.png\n"
    )
