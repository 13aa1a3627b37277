import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from PIL import Image

from tests.support import Stack, free_port, wait_until_ready
from worker.images import read_metadata


def koala(*arguments: str, cwd: Path | None = None, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "koala", *arguments],
        env={**os.environ, "COLUMNS": "200", **env},
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=300,
    )


def only_line(text: str) -> str:
    lines = text.strip().splitlines()
    assert len(lines) == 1, text
    return lines[0]


def test_a_taken_port_is_one_clear_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = koala("up", "--port", port, KOALA_DATA_DIR=str(tmp_path))
    assert done.returncode == 1
    line = only_line(done.stderr)
    assert f"127.0.0.1:{port}" in line
    assert "in use" in line


@pytest.mark.parametrize("workers", [1, 2])
def test_a_taken_metrics_port_is_one_clear_line_before_anything_starts(
    tmp_path: Path, workers: int
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        env = {"KOALA_METRICS_PORT": str(port + 1 - workers), "KOALA_WORKERS": str(workers)}
        done = koala("up", KOALA_DATA_DIR=str(tmp_path), KOALA_PORT="0", **env)
    assert done.returncode == 1
    line = only_line(done.stderr)
    assert f"metrics on 127.0.0.1:{port}: Address already in use" in line
    assert "KOALA_METRICS_PORT" in line


def test_metrics_ports_beyond_the_last_are_one_clear_line(tmp_path: Path) -> None:
    env = {"KOALA_METRICS_PORT": "65535", "KOALA_WORKERS": "2"}
    done = koala("up", KOALA_DATA_DIR=str(tmp_path), KOALA_PORT="0", **env)
    assert done.returncode == 1
    assert "KOALA_METRICS_PORT 65535 leaves no ports for the metrics of 2 workers" in only_line(
        done.stderr
    )


@pytest.mark.parametrize("command", ["up", "work"])
def test_an_unreachable_redis_is_one_clear_line(tmp_path: Path, command: str) -> None:
    url = f"redis://127.0.0.1:{free_port()}/0"
    env = {"KOALA_REDIS_URL": url, "KOALA_PORT": str(free_port())}
    done = koala(command, KOALA_DATA_DIR=str(tmp_path), **env)
    assert done.returncode == 1
    line = only_line(done.stderr)
    assert "Redis" in line
    assert "refused" in line


def test_a_worker_without_an_embedded_server_is_one_clear_line(tmp_path: Path) -> None:
    done = koala("work", KOALA_DATA_DIR=str(tmp_path))
    assert done.returncode == 1
    line = only_line(done.stderr)
    assert f"No embedded server runs on {tmp_path}: `koala up` starts one" in line
    assert "KOALA_REDIS_URL" in line


def test_an_unknown_model_is_one_clear_line(tmp_path: Path) -> None:
    done = koala("up", "--model", "nope", KOALA_DATA_DIR=str(tmp_path))
    assert done.returncode == 1
    assert "'nope'" in only_line(done.stderr)


def test_an_open_address_without_keys_is_refused(tmp_path: Path) -> None:
    done = koala("up", "--host", "0.0.0.0", KOALA_DATA_DIR=str(tmp_path))
    assert done.returncode == 1
    assert "KOALA_ALLOW_ANONYMOUS" in only_line(done.stderr)


def test_a_malformed_setting_is_one_clear_line() -> None:
    done = koala("doctor", KOALA_PORT="eighty")
    assert done.returncode == 1
    assert "KOALA_PORT" in only_line(done.stderr)


def test_a_second_server_on_the_same_data_folder_is_refused(stack: Stack) -> None:
    env = {"KOALA_DATA_DIR": str(stack.settings.data_dir), "KOALA_PORT": str(free_port())}
    done = koala("up", **env)
    assert done.returncode == 1
    assert "Another koala" in only_line(done.stderr)


def test_a_server_that_dies_at_once_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "valkey" / "appendonlydir").mkdir(parents=True)
    (tmp_path / "valkey" / "appendonlydir" / "appendonly.aof.manifest").write_text("rubbish\n")
    done = koala("up", KOALA_DATA_DIR=str(tmp_path), KOALA_PORT="0")
    assert done.returncode == 1
    line = only_line(done.stderr)
    assert "The embedded server could not start: " in line
    assert "Invalid AOF manifest file format" in line
    assert str(tmp_path / "valkey") in line


def test_generate_writes_the_images_it_was_asked_for(stack: Stack, tmp_path: Path) -> None:
    arguments = ["a koala on a blue background", "-o", "koala.webp", "-n", "2", "--seed", "5"]
    arguments += ["--steps", "4", "--scheduler", "dpmpp_2m"]
    done = koala("generate", *arguments, "--url", stack.base_url, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-2:] == ["koala.webp  seed 5", "koala-2.webp  seed 6"]
    for name in ("koala.webp", "koala-2.webp"):
        with Image.open(tmp_path / name) as image:
            assert (image.format, image.size) == ("WEBP", (64, 64))
        parameters = read_metadata((tmp_path / name).read_bytes())["parameters"]
        assert "Sampler: DPM++ 2M, " in parameters


def test_generate_says_what_the_server_warns_of(stack: Stack, tmp_path: Path) -> None:
    prompt = "a koala " * 50
    done = koala("generate", prompt, "--steps", "1", "--url", stack.base_url, cwd=tmp_path)
    assert done.returncode == 0
    assert "tokens; the model reads the first 75." in only_line(done.stderr)


def test_generate_says_what_the_server_refused(stack: Stack, tmp_path: Path) -> None:
    done = koala("generate", "a koala", "--size", "65x64", "--url", stack.base_url, cwd=tmp_path)
    assert done.returncode == 1
    assert "multiples of 16" in only_line(done.stderr)
    assert not list(tmp_path.iterdir())


def test_generate_without_a_server_says_how_to_start_one(tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    done = koala("generate", "a koala", "--url", url, cwd=tmp_path)
    assert done.returncode == 1
    assert "koala up" in only_line(done.stderr)


def test_doctor_reports_the_running_service(stack: Stack) -> None:
    env = {"KOALA_DATA_DIR": str(stack.settings.data_dir), "KOALA_PORT": str(stack.settings.port)}
    done = koala("doctor", **env)
    assert done.returncode == 0, done.stdout
    assert "Valkey" in done.stdout
    assert "koala-demo on cpu" in done.stdout
    assert "ms per step by rows" in " ".join(done.stdout.split())
    assert f"something listens on 127.0.0.1:{stack.settings.port}" in done.stdout


def test_doctor_shows_settings_as_they_are(tmp_path: Path) -> None:
    store = tmp_path / "[red]a[link=evil.example]b :smile: \x1b[31m\u202e"
    done = koala("doctor", KOALA_IMAGE_STORE=str(store), KOALA_DATA_DIR=str(tmp_path))
    shown = "".join(line[21:].rstrip() for line in done.stdout.splitlines())
    assert "[red]a[link=evil.example]b" in shown
    assert ":smile:" in shown
    assert "\\x1b[31m\\u202e" in shown
    assert "\x1b" not in done.stdout


def test_doctor_fails_where_redis_is_out_of_reach(tmp_path: Path) -> None:
    url = f"redis://:secret@127.0.0.1:{free_port()}/0"
    done = koala("doctor", KOALA_REDIS_URL=url, KOALA_DATA_DIR=str(tmp_path))
    assert done.returncode == 1
    assert "secret" not in done.stdout


def test_models_lists_the_catalogue() -> None:
    done = koala("models")
    assert done.returncode == 0
    assert "koala-lightning-700m" in done.stdout


def test_up_restarts_a_killed_worker_and_leaves_nothing_behind_on_ctrl_c(tmp_path: Path) -> None:
    port = free_port()
    env = {**os.environ, "KOALA_DATA_DIR": str(tmp_path / "data"), "KOALA_PORT": str(port)}
    log_path = tmp_path / "log.txt"
    with log_path.open("wb") as log:
        up = subprocess.Popen(
            [sys.executable, "-m", "koala", "up"], env=env, stdout=log, stderr=log
        )
    try:
        wait_until_ready(f"http://127.0.0.1:{port}", up, log_path)
        children = psutil.Process(up.pid).children(recursive=True)
        [worker] = [child for child in children if child.cmdline()[-1] == "work"]
        worker.kill()
        worker.wait(120)
        done = koala("generate", "a koala", "--url", f"http://127.0.0.1:{port}", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        after = psutil.Process(up.pid).children(recursive=True)
        assert worker.pid not in [child.pid for child in after]
        assert len(after) == len(children)
        up.send_signal(signal.SIGINT)
        assert up.wait(120) == 0, log_path.read_text()
        assert not [child for child in {*children, *after} if child.is_running()]
    finally:
        up.kill()
        up.wait()
