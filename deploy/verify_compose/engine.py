"""A Docker engine of our own: its socket, its data, its end; and what is run on it."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

_START_SECONDS: Final = 60.0
_STOP_SECONDS: Final = 150.0


class Failed(Exception):
    """Something is not as it should be; the message says what."""


def need(*tools: str) -> None:
    """Refuse to go on without some programs.

    Raises:
        Failed: One of them is missing.
    """
    for tool in tools:
        if shutil.which(tool) is None:
            raise Failed(f"{tool} is missing; docs/deploy.md says what verify-compose needs")
    for plugin in ("compose", "buildx"):
        found = subprocess.run(["docker", plugin, "version"], capture_output=True, check=False)
        if found.returncode:
            raise Failed(f"docker {plugin} is missing; docs/deploy.md says where it comes from")


class Engine:
    """A context manager that starts dockerd and ends it.

    Args:
        folder: For its data, which stay, and for its socket and log.
    """

    def __init__(self, folder: Path) -> None:
        self.folder: Final = folder
        self._socket = folder / "docker.sock"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "Engine":
        """Start it; returns once it answers."""
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End it, and with it its containers."""
        self.stop()

    @property
    def environment(self) -> dict[str, str]:
        """What ``docker`` needs to find it, and nothing that would change what Compose reads."""
        ours = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        return {**ours, "DOCKER_HOST": f"unix://{self._socket}"}

    def start(self) -> None:
        """Start it; returns once it answers.

        Raises:
            Failed: It does not start.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "dockerd.log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    "dockerd",
                    "--storage-driver=overlay2",
                    f"--data-root={self.folder / 'data'}",
                    f"--exec-root={self.folder / 'exec'}",
                    f"--pidfile={self.folder / 'pid'}",
                    f"--host=unix://{self._socket}",
                ],
                stdout=log,
                stderr=log,
                # What ends us from the keyboard ends it through us, in order.
                start_new_session=True,
            )
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline and self._process.poll() is None:
            if self._socket.exists() and not self.run("info", check=False).returncode:
                return
            time.sleep(0.2)
        self.stop()
        raise Failed(f"dockerd does not start: see {self.folder / 'dockerd.log'}")

    def stop(self) -> None:
        """End it, and with it its containers."""
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            self._process.wait(_STOP_SECONDS)
            self._process = None

    def run(
        self,
        *arguments: str,
        check: bool = True,
        cwd: Path | None = None,
        timeout: float = 300.0,
        environment: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run ``docker``.

        Raises:
            Failed: It ended with an error, and ``check`` is set.
        """
        done = subprocess.run(
            ["docker", *arguments],
            env={**self.environment, **(environment or {})},
            cwd=cwd,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        if check and done.returncode:
            said = (done.stderr or done.stdout).strip().splitlines()[-15:]
            raise Failed(f"docker {' '.join(arguments)}: {done.returncode}\n" + "\n".join(said))
        return done

    def inspect(self, what: str, template: str) -> str:
        """A part of what the engine knows of a container or image, by a Go template."""
        return self.run("inspect", "--format", template, what).stdout.strip()
