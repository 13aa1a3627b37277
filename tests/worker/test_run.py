"""The worker as a process: the demo model, signals, and starts that cannot succeed."""

import io
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
import torch
from PIL import Image

from koala.catalogue import resolve
from koala.settings import Settings
from koala.store import ImageStore
from koala.workers import WorkerAd
from tests.support import spec
from tests.worker.engine.support import without_compiler
from tests.worker.rig import Rig
from worker.model import load
from worker.run import run

Start = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def start(settings: Settings, tmp_path: Path) -> Iterator[Start]:
    """Starts ``koala work`` with settings of its own; whatever still runs is killed at the end."""
    processes: list[subprocess.Popen[bytes]] = []

    def start_worker(**changes: object) -> subprocess.Popen[bytes]:
        fields = settings.model_dump(mode="json") | {"torch_threads": 1} | changes
        env = {f"KOALA_{k.upper()}": str(v) for k, v in fields.items() if v is not None}
        with (tmp_path / "log.txt").open("w") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "koala", "work"], env={**os.environ, **env}, stderr=log
            )
        processes.append(process)
        return process

    yield start_worker
    for process in processes:
        process.kill()
        process.wait()
        print((tmp_path / "log.txt").read_text())


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    """Return once ``condition`` holds."""
    deadline = time.monotonic() + 300
    while not condition():
        assert process.poll() is None, "it ended"
        assert time.monotonic() < deadline
        time.sleep(0.02)


def has_stepped(rig: Rig, job_id: str) -> bool:
    """Whether a job in flight has done a step."""
    return any(event.type == "step" for event in rig.events(job_id))


def test_a_taken_metrics_port_is_told_before_the_model_is_loaded(
    start: Start, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        process = start(metrics_port=port)
        assert process.wait(300) == 1
    # Alone: the process that loads the model measures it, and logs that.
    [line] = (tmp_path / "log.txt").read_text().splitlines()
    assert f"Cannot serve metrics on 127.0.0.1:{port}: Address already in use" in line
    assert "KOALA_METRICS_PORT" in line


def test_the_demo_model_draws_then_drains_at_a_signal(
    rig: Rig, start: Start, tmp_path: Path
) -> None:
    process = start(drain_seconds=60)
    request = spec(prompt="a koala on a blue background", negative_prompt="blur", n=2)
    job_id = rig.submit_spec(request)
    wait_for(lambda: rig.record(job_id).state == "completed", process)

    result = rig.record(job_id).result
    assert result is not None
    assert result.usage.text_tokens >= 7
    for ref in result.images:
        data = ImageStore(rig.settings.resolved_image_store).get(ref.name)
        with Image.open(io.BytesIO(data)) as image:
            assert image.size == (64, 64)
            assert len(image.getcolors(64 * 64) or []) > 16
    [ad] = [WorkerAd.model_validate_json(x) for x in rig.redis.hvals(rig.keys.workers)]
    assert ad.model == "koala-demo"
    assert ad.metrics_url is not None
    metrics = httpx.get(ad.metrics_url).text
    assert 'koala_images_total{format="png"} 2.0' in metrics
    assert "koala_unet_step_seconds_count" in metrics
    [measured] = ad.sizes
    assert (measured.name, measured.max_rows) == ("64x64", ad.max_rows)
    assert min(measured.step_seconds) == 1
    assert max(measured.step_seconds) >= measured.max_rows
    assert f'koala_batch_cap_rows{{size="64x64"}} {ad.max_rows}.0' in metrics
    assert 'koala_step_curve_seconds{rows="1",size="64x64"}' in metrics
    assert 'koala_memory_bytes{kind="weights"}' in metrics
    assert "koala_out_of_memory_total 0.0" in metrics
    assert httpx.get(ad.metrics_url.replace("/metrics", "/healthz")).text == "ok\n"

    long = rig.submit(num_inference_steps=60)
    wait_for(lambda: has_stepped(rig, long), process)
    process.send_signal(signal.SIGTERM)
    wait_for(lambda: "stopping" in (tmp_path / "log.txt").read_text(), process)
    late = rig.submit()

    assert process.wait(300) == 0
    assert rig.record(long).state == "completed"
    assert rig.record(late).state == "queued"
    assert rig.redis.hgetall(rig.keys.workers) == {}


def test_a_worker_that_is_still_starting_leaves_at_once(start: Start, tmp_path: Path) -> None:
    process = start()
    status = Path(f"/proc/{process.pid}/status")

    def heeds_signals() -> bool:
        # As the first process of a container it would be spared a signal that it does not heed.
        caught = re.search(r"^SigCgt:\s*(\w+)$", status.read_text(), re.M)
        return caught is not None and bool(int(caught[1], 16) >> (signal.SIGTERM - 1) & 1)

    wait_for(heeds_signals, process)
    process.send_signal(signal.SIGTERM)

    assert process.wait(300) == 0
    assert "ready" not in (tmp_path / "log.txt").read_text()


def test_a_worker_keeps_to_what_the_operator_sets(rig: Rig, start: Start) -> None:
    process = start(max_batch_rows=4, target_step_ms=0.001)
    wait_for(lambda: bool(rig.redis.hgetall(rig.keys.workers)), process)
    [ad] = [WorkerAd.model_validate_json(x) for x in rig.redis.hvals(rig.keys.workers)]
    # No step is as quick as that: the smallest batch that holds an image with guidance.
    assert ad.max_rows == 2
    assert set(ad.sizes[0].step_seconds) == {1, 2}


def test_a_worker_that_has_no_time_left_hands_its_jobs_back(rig: Rig, start: Start) -> None:
    process = start(drain_seconds=60)
    ids = [rig.submit(num_inference_steps=5000, seed=i) for i in range(2)]
    wait_for(lambda: all(has_stepped(rig, job_id) for job_id in ids), process)
    last = rig.submit()
    process.send_signal(signal.SIGTERM)
    time.sleep(0.2)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)

    assert process.wait(300) == 0
    assert [x.decode() for x in rig.redis.lrange(rig.keys.pending, 0, -1)] == [*ids, last]
    for job_id in ids:
        assert (rig.record(job_id).state, rig.record(job_id).attempts) == ("queued", 0)
        assert rig.events(job_id)[-1].data == {"reason": "drained", "attempts": 0}
    assert rig.redis.exists(rig.keys.leases, rig.keys.started) == 0


def test_a_killed_workers_job_runs_again_elsewhere(rig: Rig, start: Start) -> None:
    process = start(lease_seconds=1, heartbeat_seconds=0.2)
    job_id = rig.submit(num_inference_steps=5000)
    wait_for(lambda: has_stepped(rig, job_id), process)
    process.kill()
    process.wait()

    survivor = rig.worker()
    deadline = time.monotonic() + 300
    while rig.record(job_id).state != "queued":
        assert time.monotonic() < deadline
        survivor._upkeep.reap()
        time.sleep(0.1)
    survivor.work(burst=True)

    record = rig.record(job_id)
    assert (record.state, record.attempts, record.worker) == ("completed", 1, survivor.name)
    assert rig.redis.xlen(rig.keys.results(job_id)) == 1
    assert rig.leftovers() == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"redis_url": "redis://127.0.0.1:1"}, "No Redis for the worker"),
        ({"redis_url": "nonsense"}, "KOALA_REDIS_URL"),
        ({"model": "no-such-model"}, "There is no model 'no-such-model'"),
        ({"device": "abacus"}, "abacus"),
        ({"image_store": "nowhere://images"}, "KOALA_IMAGE_STORE"),
    ],
)
def test_a_start_that_cannot_succeed_is_one_line(
    settings: Settings,
    changes: dict[str, object],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(settings.model_copy(update=changes)) == 1

    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("koala: ")
    assert message in line


def test_a_taken_metrics_port_is_one_line(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert run(settings.model_copy(update={"metrics_port": port})) == 1

    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("koala: ")]
    assert lines == [
        f"koala: Cannot serve metrics on 127.0.0.1:{port}: Address already in use. Set "
        "KOALA_METRICS_PORT to another port."
    ]


def test_the_speed_ups_that_the_settings_ask_for_reach_the_model(settings: Settings) -> None:
    changes = {"dtype": "bfloat16", "channels_last": True, "fuse_qkv": True}
    card = resolve("koala-demo")
    plain, fast = load(settings, card), load(settings.model_copy(update=changes), card)
    assert (plain.dtype, fast.dtype) == (torch.float32, torch.bfloat16)
    kernel = fast._unet.conv_in.weight
    assert kernel.is_contiguous(memory_format=torch.channels_last)
    assert not kernel.is_contiguous()
    names = {name.split(".")[-2] for name, _ in fast._unet.named_parameters()}
    assert {"to_qkv", "to_kv"} <= names and not {"to_k", "to_v"} & names


def test_compiling_without_a_compiler_is_one_line(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    with without_compiler():
        assert run(settings.model_copy(update={"compile": True})) == 1
    error = capsys.readouterr().err.strip()
    assert error.startswith("koala: KOALA_COMPILE: ") and "no-such-compiler" in error
    assert "\n" not in error
