"""The gateway as a process of its own."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from koala.settings import Settings
from tests.service.fakes import FakeWorker, wait_until
from tests.support import free_port


def command(**settings: object) -> tuple[list[str], dict[str, str]]:
    env = {f"KOALA_{name.upper()}": str(value) for name, value in settings.items()}
    return [sys.executable, "-m", "koala", "serve"], {**os.environ, **env}


@contextmanager
def process(**settings: object) -> Iterator[subprocess.Popen[str]]:
    arguments, env = command(**settings)
    with subprocess.Popen(arguments, env=env, stderr=subprocess.PIPE, text=True) as running:
        try:
            yield running
        finally:
            running.kill()


def alive(base_url: str) -> bool:
    try:
        return httpx.get(f"{base_url}/healthz").is_success
    except httpx.TransportError:
        return False


def test_importing_the_gateway_loads_no_heavy_library() -> None:
    heavy = {"torch", "diffusers", "transformers", "numpy", "safetensors", "accelerate"}
    code = (
        "import sys, service.app, service.run\n"
        f"print(sorted({heavy!r} & {{name.split('.')[0] for name in sys.modules}}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def cpu_seconds(pid: int) -> float:
    """CPU time of a process, which other processes hardly lengthen."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_a_cold_gateway_takes_less_than_two_seconds_and_needs_no_redis(tmp_path: Path) -> None:
    port = free_port()
    with process(data_dir=tmp_path, port=port) as running:
        wait_until(lambda: alive(f"http://127.0.0.1:{port}"), 60)
        assert cpu_seconds(running.pid) < 2


def test_answers_leave_at_once(tmp_path: Path) -> None:
    port = free_port()
    base_url = f"http://127.0.0.1:{port}"
    with process(data_dir=tmp_path, port=port), httpx.Client(base_url=base_url) as http:
        wait_until(lambda: alive(base_url))
        times = [http.get("/healthz").elapsed.total_seconds() for _ in range(60)]
        # Nagle's algorithm against delayed acknowledgements would cost 0.04 s each, but for the
        # first ones, which are acknowledged at once.
        assert min(times[20:]) < 0.03


def test_port_zero_picks_a_free_port_and_says_which(tmp_path: Path) -> None:
    with process(data_dir=tmp_path, port=0) as running:
        assert running.stderr is not None
        said = json.loads(running.stderr.readline())
        assert said["event"] == "listening"
        wait_until(lambda: alive(said["url"]))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_cleanly(tmp_path: Path, number: signal.Signals) -> None:
    port = free_port()
    with process(data_dir=tmp_path, port=port) as running:
        wait_until(lambda: alive(f"http://127.0.0.1:{port}"))
        running.send_signal(number)
        assert running.wait(120) == 0
        assert running.stderr is not None
        assert "Traceback" not in running.stderr.read()


def test_a_signal_lets_a_waiting_client_have_its_image(
    settings: Settings, worker: FakeWorker
) -> None:
    port = free_port()
    base_url = f"http://127.0.0.1:{port}"
    ours = {"data_dir": settings.data_dir, "redis_url": settings.redis_url}
    with process(**ours, port=port) as running, ThreadPoolExecutor(1) as pool:
        wait_until(lambda: alive(base_url))
        generations = f"{base_url}/v1/images/generations"
        pending = pool.submit(httpx.post, generations, json={"prompt": "a"}, timeout=120)
        job_id = worker.take()
        running.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        worker.finish(job_id)
        assert pending.result(120).json()["id"] == job_id
        assert running.wait(120) == 0


def test_a_client_that_waits_longer_than_the_drain_is_told_where_its_job_is(
    settings: Settings, worker: FakeWorker
) -> None:
    port = free_port()
    base_url = f"http://127.0.0.1:{port}"
    ours = {"data_dir": settings.data_dir, "redis_url": settings.redis_url, "drain_seconds": 1.2}
    with process(**ours, port=port) as running, ThreadPoolExecutor(1) as pool:
        wait_until(lambda: alive(base_url))
        generations = f"{base_url}/v1/images/generations"
        pending = pool.submit(httpx.post, generations, json={"prompt": "a"}, timeout=120)
        job_id = worker.take()
        running.send_signal(signal.SIGTERM)
        response = pending.result(120)
        assert response.status_code == 503
        assert response.json()["error"]["code"] == "shutting_down"
        assert response.headers["Retry-After"] == "2"
        assert response.headers["location"] == f"/v1/jobs/{job_id}"
        assert response.headers["x-should-retry"] == "false"
        assert running.wait(120) == 0


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"host": "0.0.0.0"}, "KOALA_ALLOW_ANONYMOUS"),
        ({"host": "192.0.2.1", "allow_anonymous": 1}, "Cannot listen on 192.0.2.1"),
        ({"host": "no.such.host.invalid", "allow_anonymous": 1}, "Cannot listen"),
        ({"model": "nonsense"}, "There is no model 'nonsense'"),
        ({"redis_url": "nonsense"}, "KOALA_REDIS_URL"),
        ({"image_store": "nosuch://bucket"}, "KOALA_IMAGE_STORE"),
    ],
)
def test_what_cannot_work_is_one_clear_line(
    tmp_path: Path, settings: dict[str, object], says: str
) -> None:
    arguments, env = command(data_dir=tmp_path, port=free_port(), **settings)
    done = subprocess.run(arguments, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert says in line


def test_a_taken_port_is_one_clear_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        arguments, env = command(data_dir=tmp_path, port=port)
        done = subprocess.run(arguments, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert f"127.0.0.1:{port}" in line
    assert "KOALA_PORT" in line
