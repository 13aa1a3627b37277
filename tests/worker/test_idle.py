"""Weights that go when nobody needs them, and come back."""

import base64
import io
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
import redis
from PIL import Image

from koala.settings import Settings
from koala.workers import WorkerAd
from tests.support import free_port, wait_until_ready
from tests.worker.engine.support import largest_difference
from tests.worker.rig import FakeEngine, Rig
from worker.engine import ModelLoadError
from worker.idle import IdleUnload

REQUEST = {"prompt": "a koala on a blue background", "seed": 7, "response_format": "b64_json"}


def until(condition: Callable[[], bool]) -> None:
    """Return once ``condition`` holds."""
    deadline = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def resident_kilobytes(pid: int) -> int:
    """What a process has of the machine's memory."""
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1])


def test_a_worker_frees_its_weights_and_loads_them_for_the_next_request(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, port=free_port())
    changes = {
        "KOALA_DATA_DIR": str(tmp_path),
        "KOALA_PORT": str(settings.port),
        "KOALA_IDLE_UNLOAD_SECONDS": "1",
        "KOALA_HEARTBEAT_SECONDS": "0.2",
        "KOALA_TORCH_THREADS": "1",
    }
    base_url = f"http://127.0.0.1:{settings.port}"
    with (tmp_path / "log.txt").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "koala", "up"],
            env={**os.environ, **changes},
            stdout=log,
            stderr=log,
        )
    rig = None
    try:
        wait_until_ready(base_url, process, tmp_path / "log.txt")
        rig = Rig(settings, redis.Redis.from_url(settings.resolved_redis_url))

        def ad() -> WorkerAd:
            [raw] = rig.redis.hvals(rig.keys.workers)
            return WorkerAd.model_validate_json(raw)

        def weights() -> float:
            metrics = httpx.get(ad().metrics_url or "").text
            [line] = re.findall(r'^koala_memory_bytes\{kind="weights"\} (\S+)$', metrics, re.M)
            return float(line)

        def draw() -> Image.Image:
            answer = httpx.post(f"{base_url}/v1/images/generations", json=REQUEST, timeout=300)
            assert answer.status_code == 200, answer.text
            data = base64.b64decode(answer.json()["data"][0]["b64_json"])
            return Image.open(io.BytesIO(data)).convert("RGB")

        def take(pid: int) -> int:
            """What the worker takes with its weights, right after a request."""
            while True:
                draw()
                size = resident_kilobytes(pid)
                if weights():
                    return size

        first = draw()
        pid = int(ad().name.split("-")[-2])
        loaded = take(pid)
        until(lambda: not ad().is_loaded)
        freed = resident_kilobytes(pid)
        assert weights() == 0
        # In fp32 the demo model's weights take 21 MiB.
        assert loaded - freed > 12 * 1024
        # Whoever asks before they are needed does not have to know.
        assert httpx.get(f"{base_url}/readyz").status_code == 200
        [model] = httpx.get(f"{base_url}/v1/models").json()["data"]
        assert model["ready"] is True
        assert largest_difference(draw(), first) == 0
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(120)
        if rig is not None:
            rig.redis.close()


def test_weights_stay_while_something_is_drawn_and_unless_told_otherwise() -> None:
    model = FakeEngine()
    idle = IdleUnload(model, 0.001)
    with idle.awake():
        time.sleep(0.01)
        idle.check()
        assert idle.is_loaded
    time.sleep(0.01)
    idle.check()
    assert not idle.is_loaded
    with idle.awake():
        assert model.is_loaded

    other = FakeEngine()
    never = IdleUnload(other, None)
    never.check()
    assert other.is_loaded


def test_a_job_waits_for_weights_that_are_being_freed() -> None:
    log = []

    class SlowToLeave(FakeEngine):
        def unload(self) -> None:
            going.set()
            time.sleep(0.1)
            super().unload()
            log.append("gone")

        def reload(self) -> None:
            super().reload()
            log.append("back")

    going = threading.Event()
    idle = IdleUnload(SlowToLeave(), 0)
    beat = threading.Thread(target=idle.check)
    beat.start()
    going.wait()
    with idle.awake():
        log.append("drawn")
    beat.join()
    assert log == ["gone", "back", "drawn"]


def test_a_job_whose_weights_do_not_come_back_is_left_to_another_worker(rig: Rig) -> None:
    class Broken(FakeEngine):
        def reload(self) -> None:
            raise ModelLoadError("the disk is gone")

    engine = Broken()
    engine.unload()
    job_id = rig.submit()
    rig.work(idle=IdleUnload(engine, 1))
    assert rig.record(job_id).state == "in_progress"
    rig.expire_lease(job_id)
    survivor = rig.worker()
    survivor._upkeep.reap()
    survivor.work(burst=True)
    assert (rig.record(job_id).state, rig.record(job_id).attempts) == ("completed", 1)
    assert rig.leftovers() == []


@pytest.mark.parametrize("seconds", ["0", "soon"])
def test_a_wait_that_is_none_is_refused_by_name(
    seconds: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KOALA_IDLE_UNLOAD_SECONDS", seconds)
    done = subprocess.run(
        [sys.executable, "-m", "koala", "doctor"], capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 1
    assert "KOALA_IDLE_UNLOAD_SECONDS" in done.stderr
