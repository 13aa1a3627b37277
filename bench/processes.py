"""Processes of the benchmark: started on loopback, waited for, paused, ended by their ids."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Final

import httpx

from koala import processors
from koala.supervisor import Part

READY_SECONDS: Final = 180.0
_END_SECONDS: Final = 20.0


class ContenderFailed(Exception):
    """A contender did not start, or went away; the message names it."""


class Process:
    """A child with a process group of its own, which ends with it.

    Args:
        name: What messages call it.
        command: What to run.
        env: Its whole environment.
    """

    def __init__(self, name: str, command: Sequence[str], env: Mapping[str, str]) -> None:
        self.name = name
        self._part = Part(name, command, env)
        self._part.start()

    @property
    def is_running(self) -> bool:
        """Whether it exists right now."""
        return self._part.is_running

    @property
    def pid(self) -> int:
        """Its id."""
        assert self._part.process is not None
        return self._part.process.pid

    def pause(self) -> None:
        """Freeze the whole group."""
        self._send_group(signal.SIGSTOP)

    def resume(self) -> None:
        """Let the group go on."""
        self._send_group(signal.SIGCONT)

    def stop(self) -> None:
        """Ask it to end, wait, and kill what is left of its group."""
        assert self._part.process is not None
        self.resume()
        self._part.send(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            self._part.process.wait(_END_SECONDS)
        self._send_group(signal.SIGKILL)
        self._part.process.wait()

    def _send_group(self, number: signal.Signals) -> None:
        assert self._part.process is not None
        with suppress(ProcessLookupError):
            os.killpg(self._part.process.pid, number)


def python_module(*arguments: str) -> list[str]:
    """The command that runs a module with this interpreter."""
    return [sys.executable, "-m", *arguments]


def environment() -> dict[str, str]:
    """Ours without ``KOALA_*``: the contenders get their settings from nobody else."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("KOALA_")}
    quiet = {"TRANSFORMERS_VERBOSITY": "error", "DIFFUSERS_VERBOSITY": "error"}
    # As our own workers do, so that no contender's threads take time from its server.
    processors.configure(ours)
    return ours | quiet | {"HF_HUB_DISABLE_PROGRESS_BARS": "1"}


def wait_until_ready(
    url: str, processes: Sequence[Process], seconds: float = READY_SECONDS
) -> None:
    """Return once ``url`` answers with success.

    Raises:
        ContenderFailed: A process ended, or it takes longer than ``seconds``.
    """
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        for process in processes:
            if not process.is_running:
                raise ContenderFailed(f"{process.name} ended before it was ready")
        with suppress(httpx.HTTPError):
            if httpx.get(url, timeout=2, trust_env=False).is_success:
                return
        time.sleep(0.2)
    names = ", ".join(process.name for process in processes)
    raise ContenderFailed(f"{names}: not ready within {seconds:g} s")


def free_port() -> int:
    """A port that nobody listens on right now."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
    return port
