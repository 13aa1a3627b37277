"""A user's checkout with its ``.env``, and what a user does in it: Compose commands, requests."""

import json
import socket
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

import httpx

from deploy.verify_compose.engine import Engine, Failed

WAIT_SECONDS: Final = 180.0
# Steps of a job that is still in progress when the next command reaches it.
LONG: Final = 100


def free_port() -> int:
    """A port of loopback that nothing listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


_T = TypeVar("_T")


def eventually(look: Callable[[], _T], what: str, seconds: float = WAIT_SECONDS) -> _T:
    """What ``look`` gives as soon as that is true.

    Raises:
        Failed: It is not, for ``seconds``.
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            found = look()
            if found:
                return found
            last = repr(found)
        except (httpx.HTTPError, OSError, KeyError, ValueError) as error:
            last = repr(error)
        if time.monotonic() > deadline:
            raise Failed(f"{what}: not within {seconds:g} s, but {last[:300]}")
        time.sleep(0.25)


class Site:
    """A checkout, its ``.env``, and its containers.

    Args:
        engine: Runs the containers.
        folder: The checkout.
        compose_files: For ``COMPOSE_FILE``.
        options: For every Compose command.
    """

    def __init__(
        self, engine: Engine, folder: Path, compose_files: str, options: tuple[str, ...] = ()
    ) -> None:
        self.engine: Final = engine
        self.folder: Final = folder
        self.port: Final = free_port()
        self.key: str | None = None
        self._options = options
        self._values: dict[str, str] = {"KOALA_PORT": str(self.port)}
        if compose_files:
            self._values["COMPOSE_FILE"] = compose_files
        self.set()

    @classmethod
    def checkout(cls, engine: Engine, source: Path, commit: str | None, folder: Path) -> Path:
        """A copy of a commit's files, or of those that git would add; its folder."""
        folder.mkdir(parents=True)
        if commit is None:
            listed = subprocess.run(
                ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
                cwd=source,
                capture_output=True,
                check=True,
            ).stdout.split(b"\0")
            # Not those deleted; a link may lead to a folder.
            names = [name for name in listed if name and _is_there(source / name.decode())]
            command = ["tar", "-c", "--null", "--files-from=-"]
            packed = subprocess.run(
                command, cwd=source, input=b"\0".join(names), capture_output=True, check=True
            )
        else:
            command = ["git", "archive", commit]
            packed = subprocess.run(command, cwd=source, capture_output=True, check=True)
        subprocess.run(["tar", "-x", "-C", str(folder)], input=packed.stdout, check=True)
        return folder

    def set(self, **values: str) -> None:
        """Set variables in ``.env``; containers see them with the next ``up``."""
        self._values |= values
        lines = [f"{name}='{value}'" for name, value in self._values.items()]
        (self.folder / ".env").write_text("\n".join(lines) + "\n")

    def compose(
        self, *arguments: str, check: bool = True, timeout: float = 300.0
    ) -> subprocess.CompletedProcess[str]:
        """Run ``docker compose``.

        Raises:
            Failed: It ended with an error, and ``check`` is set.
        """
        return self.engine.run(
            "compose", *self._options, *arguments, check=check, cwd=self.folder, timeout=timeout
        )

    def container(self, service: str) -> str:
        """The id of a service's container, running or not.

        Raises:
            Failed: There is none.
        """
        found = self.compose("ps", "--all", "--quiet", service).stdout.split()
        if not found:
            raise Failed(f"{service} has no container")
        return found[0]

    def inspect(self, service: str, template: str) -> str:
        """A part of what the engine knows of a service's container, by a Go template."""
        return self.engine.inspect(self.container(service), template)

    def run_in(self, service: str, *command: str, check: bool = True) -> str:
        """Run a program in a service's container; what it prints."""
        done = self.compose("exec", "-T", service, *command, check=check)
        return f"{done.stdout}{'' if check else done.stderr}".strip()

    def is_healthy(self, service: str) -> bool:
        """Whether a service's own health check passes."""
        return self.inspect(service, "{{.State.Health.Status}}") == "healthy"

    def shrink(self, volume: str, size: str, owner: int) -> None:
        """Replace a volume by an empty one in memory, so that it can be filled."""
        self.compose("down")
        name = f"koala_{volume}"
        self.engine.run("volume", "rm", name)
        options = f"o=size={size},uid={owner},mode=0755"
        self.engine.run(
            "volume",
            "create",
            "--opt",
            "type=tmpfs",
            "--opt",
            "device=tmpfs",
            "--opt",
            options,
            name,
        )
        self.compose("up", "--detach", timeout=600)

    # HTTP

    @property
    def url(self) -> str:
        """Where the gateway is published."""
        return f"http://127.0.0.1:{self.port}"

    def request(
        self,
        method: str,
        path: str,
        *,
        body: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float = WAIT_SECONDS,
    ) -> httpx.Response:
        """Ask the gateway."""
        login = {} if self.key is None else {"Authorization": f"Bearer {self.key}"}
        with httpx.Client(trust_env=False, timeout=timeout) as client:
            url = path if path.startswith("http") else f"{self.url}{path}"
            return client.request(method, url, json=body, headers={**login, **(headers or {})})

    def until_ready(self) -> float:
        """Wait until the gateway is ready; the seconds that took."""
        began = time.monotonic()
        eventually(lambda: self.request("GET", "/readyz", timeout=10).is_success, "ready")
        return time.monotonic() - began

    def draw(self, **fields: Any) -> bytes:
        """Draw a picture and fetch it.

        Raises:
            Failed: The answer is no picture.
        """
        body = {"prompt": "a koala on a blue background", **fields}
        answer = self.request("POST", "/v1/images/generations", body=body)
        if answer.status_code != 200:
            raise Failed(f"no picture: {answer.status_code} {answer.text[:300]}")
        return self.image(answer.json()["data"][0]["url"])

    def image(self, url: str) -> bytes:
        """A picture by its address.

        Raises:
            Failed: It is no PNG.
        """
        answer = self.request("GET", url, timeout=20)
        if not answer.content.startswith(b"\x89PNG\r\n\x1a\n"):
            raise Failed(f"no PNG at {url}: {answer.status_code} {answer.text[:200]}")
        return answer.content

    def submit(self, **fields: Any) -> str:
        """Submit a job without waiting for it; its id."""
        body = {"prompt": "a koala on a blue background", **fields}
        answer = self.request(
            "POST", "/v1/images/generations", body=body, headers={"Prefer": "respond-async"}
        )
        if answer.status_code != 202:
            raise Failed(f"not submitted: {answer.status_code} {answer.text[:300]}")
        return str(answer.json()["id"])

    def job(self, job_id: str) -> dict[str, Any]:
        """A job as it stands."""
        answer = self.request("GET", f"/v1/jobs/{job_id}", timeout=10)
        answer.raise_for_status()
        found: dict[str, Any] = answer.json()
        return found

    def until(self, job_id: str, *states: str) -> dict[str, Any]:
        """Wait until a job is in one of some states; the job."""

        def look() -> dict[str, Any] | None:
            job = self.job(job_id)
            return job if job["status"] in states else None

        found = eventually(look, f"job {' or '.join(states)}")
        assert found is not None
        return found

    def is_busy(self) -> bool:
        """Whether a job is in progress."""
        jobs = self.request("GET", "/v1/jobs?limit=5", timeout=10).json()["data"]
        return any(job["status"] == "in_progress" for job in jobs)

    def ask_prometheus(self, path: str) -> Any:
        """Prometheus' answer; it is not published, so the gateway's container asks."""
        code = (
            "import sys, urllib.request as r;"
            "print(r.urlopen('http://prometheus:9090/api/v1' + sys.argv[1]).read().decode())"
        )
        return json.loads(self.run_in("gateway", "python", "-c", code, path))["data"]


def _is_there(path: Path) -> bool:
    return path.is_file() or path.is_symlink()
