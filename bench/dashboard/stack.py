"""The service with metrics on known ports: server, gateway and worker, each with its own log."""

import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import httpx
from pydantic import SecretStr

from bench.processes import ContenderFailed, environment, free_port, python_module
from koala import embedded
from koala.settings import Settings

_END_SECONDS: Final = 30.0
_READY_SECONDS: Final = 180.0


class Stack:
    """The service's processes.

    Args:
        folder: Data, images and logs.
        **settings: What differs from the defaults.
    """

    def __init__(self, folder: Path, **settings: object) -> None:
        self._folder = folder
        self._gateway_port, self._worker_port = free_port(), free_port()
        ours: dict[str, object] = {
            "data_dir": folder,
            "port": self._gateway_port,
            "metrics_port": self._worker_port,
            "torch_threads": 1,
        }
        self.settings = Settings.model_validate(ours | settings)
        self.base_url = f"http://127.0.0.1:{self._gateway_port}"
        self._processes: list[subprocess.Popen[bytes]] = []

    @property
    def targets(self) -> dict[str, list[str]]:
        """What there is to scrape, by the names of the files with targets."""
        return {
            "gateways": [f"127.0.0.1:{self._gateway_port}"],
            "workers": [f"127.0.0.1:{self._worker_port}"],
        }

    @property
    def metrics_urls(self) -> dict[str, str]:
        """Where gateway and worker serve their metrics."""
        return {
            "gateway": f"{self.base_url}/metrics",
            "worker": f"http://127.0.0.1:{self._worker_port}/metrics",
        }

    def log(self, part: str) -> str:
        """What ``gateway`` or ``worker`` has logged."""
        return (self._folder / f"{part}.log").read_text()

    def start(self) -> None:
        """Start all parts; they are not ready yet."""
        self._start("valkey", embedded.prepare(self.settings))
        embedded.wait_until_ready(self.settings)
        self._start("gateway", python_module("koala", "serve"))
        self.start_worker()

    def wait_until_ready(self) -> None:
        """Return once the gateway and a worker are ready.

        Raises:
            ContenderFailed: A part ended, or it takes too long.
        """
        deadline = time.monotonic() + _READY_SECONDS
        while time.monotonic() < deadline:
            for process in self._processes:
                if process.poll() is not None:
                    raise ContenderFailed(f"{process.args!r} ended:\n{self.log('worker')}")
            with suppress(httpx.HTTPError):
                if httpx.get(f"{self.base_url}/readyz", timeout=2, trust_env=False).is_success:
                    return
            time.sleep(0.1)
        raise ContenderFailed(f"not ready within {_READY_SECONDS:g} s:\n{self.log('worker')}")

    def start_worker(self) -> None:
        """Start the worker."""
        self._worker = self._start("worker", python_module("koala", "work"))

    @contextmanager
    def frozen_worker(self) -> Iterator[None]:
        """Let the worker do nothing within the block."""
        self._worker.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._worker.send_signal(signal.SIGCONT)

    def kill_worker(self) -> None:
        """Kill the worker as the kernel does when memory runs out."""
        self._worker.kill()
        self._worker.wait()
        self._processes.remove(self._worker)

    def stop(self) -> None:
        """End all parts, last started first."""
        for process in reversed(self._processes):
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(_END_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _values(self) -> dict[str, object]:
        secrets = {
            name: value.get_secret_value()
            for name, value in self.settings
            if isinstance(value, SecretStr)
        }
        return self.settings.model_dump(mode="json") | secrets

    def _start(self, name: str, command: list[str]) -> subprocess.Popen[bytes]:
        env = environment() | {
            f"KOALA_{name.upper()}": str(value)
            for name, value in self._values().items()
            if value is not None
        }
        with (self._folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(command, env=env, stderr=log, stdin=subprocess.DEVNULL)
        self._processes.append(process)
        return process
