"""The services of docker-compose.yml, started by hand as they stand there, without a GPU."""

import io
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis
from PIL import Image

from koala.embedded import binary
from tests.deploy import compose
from tests.support import free_port, wait_until_ready

# With what means something in a URL, in a shell and in the server's own configuration.
PASSWORD = r"""a/b@c#d?e%f:g"h\i'j k$l"""


@dataclass
class Box:
    """What ``docker compose up`` would run, as processes of this machine.

    Names of hosts, ports and folders are those of the containers, until :meth:`here` replaces them.
    """

    folder: Path
    services: dict[str, dict[str, Any]]
    ports: dict[str, int]
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def here(self, text: str) -> str:
        """What stands for ``text`` on this machine."""
        if text in ("koala", "python"):
            return str(Path(sys.executable).parent / text)
        ours = {
            "redis:6379": f"127.0.0.1:{self.ports['redis']}",
            "0.0.0.0": "127.0.0.1",
            ":8000": f":{self.ports['gateway']}",
            "9101": str(self.ports["worker"]),
            "/data": str(self.folder / "data"),
            "/models": str(self.folder / "models"),
            "/tmp": str(self.folder),
            "/app": str(compose.ROOT),
            "valkey-server": str(binary()),
        }
        # In one pass: what replaces one name may hold another.
        return re.sub("|".join(map(re.escape, ours)), lambda found: ours[found[0]], text)

    def environment(self, service: str, target: str | None) -> dict[str, str]:
        """The environment of a service's container."""
        image = {} if target is None else compose.image(target)["env"]
        ours = self.services[service]["environment"]
        given = {name: self.here(value) for name, value in ours.items() if value is not None}
        built = {name: self.here(value) for name, value in image.items() if name != "PATH"}
        return {"PATH": os.environ["PATH"], **built, **given}

    def start(self, service: str, command: list[str], environment: dict[str, str]) -> None:
        """Start a service; its output goes to a file of its name."""
        with self.log(service).open("wb") as log:
            self.processes[service] = subprocess.Popen(
                command, env=environment, stdout=log, stderr=log, cwd=self.folder
            )

    def log(self, service: str) -> Path:
        """What a service said."""
        return self.folder / f"{service}.log"

    def run(self, command: list[str], environment: dict[str, str]) -> int:
        """Run a health check as its container would; the exit code."""
        command = [self.here(part) for part in command]
        return subprocess.run(command, env=environment, timeout=240, check=False).returncode


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    """The running box."""
    folder = tmp_path_factory.mktemp("box")
    # A machine that does other things beside this measures the batch more quickly.
    ours = {"REDIS_PASSWORD": PASSWORD, "KOALA_TORCH_THREADS": "1", "KOALA_MAX_BATCH_ROWS": "4"}
    services = compose.services(ours, cpu=True)
    running = Box(folder, services, {name: free_port() for name in ("redis", "gateway", "worker")})
    (folder / "data").mkdir()
    try:
        command = [running.here(part) for part in services["redis"]["command"]]
        command[-1] += f" --bind 127.0.0.1 --port {running.ports['redis']}"
        running.start("redis", command, running.environment("redis", None))
        for service, target in (("gateway", "gateway"), ("worker", "worker")):
            extra = {"KOALA_PORT": str(running.ports["gateway"])} if target == "gateway" else {}
            running.start(
                service,
                [running.here(part) for part in compose.image(target)["cmd"]],
                {**running.environment(service, target), **extra},
            )
        url = f"http://127.0.0.1:{running.ports['gateway']}"
        wait_until_ready(url, running.processes["gateway"], running.log("gateway"))
        yield running
    finally:
        for process in running.processes.values():
            process.kill()
            process.wait()
        for service in running.processes:
            print(running.log(service).read_text())


def test_it_draws_an_image_into_the_volume(box: Box) -> None:
    answer = httpx.post(
        f"http://127.0.0.1:{box.ports['gateway']}/v1/images/generations",
        json={"prompt": "a koala on a blue background"},
        timeout=240,
    )
    assert answer.status_code == 200, answer.text
    url = answer.json()["data"][0]["url"]
    with Image.open(io.BytesIO(httpx.get(url).content)) as image:
        assert image.size == (64, 64)
    assert (box.folder / "data" / "images" / url.rsplit("/", 1)[1]).is_file()


def test_the_health_checks_of_the_images_pass(box: Box) -> None:
    for service, target in (("gateway", "gateway"), ("worker", "worker")):
        check = compose.image(target)["healthcheck"]
        assert box.run(check, box.environment(service, target)) == 0, service


def test_the_worker_says_on_which_device_it_draws(box: Box) -> None:
    lines = [json.loads(line) for line in box.log("worker").read_text().splitlines()]
    [ready] = [line for line in lines if line["event"] == "ready"]
    assert ready["device"] == "cpu"


def test_redis_asks_for_the_password_and_appends_each_write_to_a_file(box: Box) -> None:
    port = box.ports["redis"]
    with pytest.raises(redis.AuthenticationError):
        redis.Redis(port=port).ping()
    config = redis.Redis(port=port, password=PASSWORD).config_get("*")
    assert config["appendonly"] == "yes"
    assert config["maxmemory-policy"] == "noeviction"
    assert config["maxmemory"] == str(2 << 30)
    assert config["dir"] == str(box.folder / "data")
    command = Path(f"/proc/{box.processes['redis'].pid}/cmdline").read_bytes()
    assert PASSWORD.encode() not in command


def test_all_parts_end_in_order_when_they_are_asked_to(box: Box) -> None:
    for service in ("worker", "gateway", "redis"):
        box.processes[service].send_signal(signal.SIGTERM)
        assert box.processes[service].wait(240) == 0, service
