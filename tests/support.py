"""What several tests share beside fixtures."""

import socket
import subprocess
import time
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
    base_url: str, process: subprocess.Popen[bytes], log: Path, seconds: float = 120
) -> None:
    """Return once ``/readyz`` is green; fail with the log if that never happens."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        assert process.poll() is None, f"it ended:\n{log.read_text()}"
        try:
            if httpx.get(f"{base_url}/readyz", timeout=2).is_success:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.1)
    pytest.fail(f"not ready within {seconds:g} s:\n{log.read_text()}")
