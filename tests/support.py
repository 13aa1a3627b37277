"""What several tests share beside fixtures."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from koala.settings import Settings
from koala.spec import JobSpec


@dataclass(frozen=True)
class Stack:
    """A running ``koala up``: gateway, one worker with the demo model, embedded server."""

    base_url: str
    settings: Settings
    pid: int


def spec(**changes: object) -> JobSpec:
    """A job for the demo model."""
    fields = {
        "prompt": "a koala",
        "model": "koala-demo",
        "width": 64,
        "height": 64,
        "n": 1,
        "num_inference_steps": 10,
        "guidance_scale": 3.5,
        "seed": 7,
    }
    return JobSpec.model_validate(fields | changes)


def free_port() -> int:
    """A port that nobody listens on right now."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
    return port


def wait_until_ready(
    base_url: str, process: subprocess.Popen[bytes], log: Path, seconds: float = 300
) -> None:
    """Return once ``/readyz`` is green; fail with the log if that never happens."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        assert process.poll() is None, f"it ended:\n{log.read_text()}"
        try:
            if httpx.get(f"{base_url}/readyz", timeout=10).is_success:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.1)
    pytest.fail(f"not ready within {seconds:g} s:\n{log.read_text()}")


@contextmanager
def running(
    folder: Path, *, python: str | Path = sys.executable, cwd: Path | None = None, **env: str
) -> Iterator[Stack]:
    """``koala up`` as a user starts it, on a free port, with its data in ``folder``."""
    settings = Settings(data_dir=folder, port=free_port())
    env = {"KOALA_DATA_DIR": str(folder), "KOALA_PORT": str(settings.port)} | env
    with (folder / "log.txt").open("wb") as log:
        process = subprocess.Popen(
            [python, "-m", "koala", "up"],
            cwd=cwd,
            env=os.environ | env,
            stdout=log,
            stderr=log,
        )
        base_url = f"http://127.0.0.1:{settings.port}"
        try:
            wait_until_ready(base_url, process, folder / "log.txt")
            yield Stack(base_url, settings, process.pid)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(120)
