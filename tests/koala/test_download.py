"""``koala download`` against a small hub of our own."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from koala.catalogue import DEMO_FOLDER
from tests.koala.tiny_hub import COMMIT, TinyHub

REPO = "someone/koala"
# What huggingface_hub writes at once.
CHUNK = 10 * 2**20
UNET = "unet/diffusion_pytorch_model.fp16.safetensors"


def demo_files() -> dict[str, bytes]:
    """The demo model as a hub would have it: fp16 beside files that nobody needs."""
    paths = [DEMO_FOLDER / "model_index.json", *DEMO_FOLDER.glob("*/*")]
    files = {}
    for path in paths:
        name = path.relative_to(DEMO_FOLDER).as_posix()
        files[name.replace(".safetensors", ".fp16.safetensors")] = path.read_bytes()
        if path.suffix == ".safetensors":
            files[name] = b"twice the size, and not needed"
            files[name.replace(".safetensors", ".bin")] = b"a pickle"
    return files | {"README.md": b"of no use", "unet/model.onnx": b"of no use either"}


def tensors(size: int) -> bytes:
    """A safetensors file with one tensor of ``size`` bytes."""
    entry = {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}
    header = json.dumps({"zeros": entry}).encode()
    return len(header).to_bytes(8, "little") + header + bytes(size)


@pytest.fixture
def hub() -> Iterator[TinyHub]:
    hub = TinyHub({REPO: demo_files()})
    yield hub
    hub.close()


def environment(hub: TinyHub, home: Path) -> dict[str, str]:
    ours = {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0"}
    return {**os.environ, "COLUMNS": "200", **ours}


def download(
    hub: TinyHub, home: Path, *arguments: str, **env: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "koala", "download", *(arguments or (REPO,))],
        env=environment(hub, home) | env,
        capture_output=True,
        text=True,
        timeout=300,
    )


def snapshot(home: Path) -> Path:
    return home / "hub" / "models--someone--koala" / "snapshots" / COMMIT


def complaint(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 1, done.stdout
    *_, line = done.stderr.strip().splitlines()
    assert "Traceback" not in done.stderr
    return line


def test_only_what_a_worker_needs_is_downloaded_and_the_commit_is_told(
    hub: TinyHub, tmp_path: Path
) -> None:
    done = download(hub, tmp_path)
    assert done.returncode == 0, done.stderr
    folder = snapshot(tmp_path)
    there = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    assert UNET in there
    assert {name for name in there if name.endswith(".safetensors")} == {
        name for name in demo_files() if name.endswith(".fp16.safetensors")
    }
    assert not [name for name in there if name.endswith((".bin", ".onnx", ".md"))]
    assert f"KOALA_MODEL_REVISION={COMMIT}" in done.stdout
    assert f"{REPO} at {COMMIT}" in done.stdout

    again = download(hub, tmp_path)
    assert "nothing fetched" in again.stdout
    assert len(hub.sent(UNET)) == 1


def test_a_connection_that_breaks_is_resumed_where_it_broke(hub: TinyHub, tmp_path: Path) -> None:
    large = hub.repositories[REPO][UNET] = tensors(3 * CHUNK)
    hub.cuts[UNET] = [CHUNK + CHUNK // 2]
    done = download(hub, tmp_path)
    assert done.returncode == 0, done.stderr
    assert hub.sent(UNET) == [None, f"bytes={CHUNK}-"]
    assert (snapshot(tmp_path) / UNET).read_bytes() == large


def test_a_download_that_was_killed_goes_on_where_it_stopped(hub: TinyHub, tmp_path: Path) -> None:
    large = hub.repositories[REPO][UNET] = tensors(3 * CHUNK)
    hub.cuts[UNET] = [CHUNK + CHUNK // 2]
    hub.breaks.clear()
    first = subprocess.Popen(
        [sys.executable, "-m", "koala", "download", REPO], env=environment(hub, tmp_path)
    )
    blobs = tmp_path / "hub" / "models--someone--koala" / "blobs"
    while not any(path.stat().st_size >= CHUNK for path in blobs.glob("*.koala-part")):
        assert first.poll() is None
        time.sleep(0.05)
    first.send_signal(signal.SIGKILL)
    first.wait(120)
    assert not (snapshot(tmp_path) / UNET).exists()

    done = download(hub, tmp_path)
    assert done.returncode == 0, done.stderr
    assert hub.sent(UNET) == [None, f"bytes={CHUNK}-"]
    assert (snapshot(tmp_path) / UNET).read_bytes() == large


def test_a_gated_repository_says_what_to_do(hub: TinyHub, tmp_path: Path) -> None:
    hub.gated.add(REPO)
    line = complaint(download(hub, tmp_path))
    assert f"{REPO} is gated: accept its terms on the hub and set HF_TOKEN" in line


def test_a_repository_or_revision_that_is_not_there_is_named(hub: TinyHub, tmp_path: Path) -> None:
    line = complaint(download(hub, tmp_path, "someone/nothing"))
    assert "neither a folder nor a hub repository someone/nothing" in line
    line = complaint(download(hub, tmp_path, REPO, "--revision", "v9"))
    assert f"there is no such revision on the hub: {REPO} at revision v9" in line


def test_pickles_are_not_downloaded(hub: TinyHub, tmp_path: Path) -> None:
    files = hub.repositories[REPO]
    for name in [name for name in files if name.startswith("vae") and "safetensors" in name]:
        del files[name]
    line = complaint(download(hub, tmp_path))
    assert f"{REPO} has only pickled weights in vae/ (vae/diffusion_pytorch_model.bin)" in line
    assert not list(tmp_path.rglob("*.bin"))


def test_weights_that_are_truncated_on_the_hub_are_refused(hub: TinyHub, tmp_path: Path) -> None:
    files = hub.repositories[REPO]
    size = len(files[UNET])
    files[UNET] = files[UNET][:-5000]
    line = complaint(download(hub, tmp_path))
    assert f"{REPO} has a broken {UNET}: it is truncated, {size - 5000} of {size} bytes" in line


def test_weights_that_arrive_damaged_are_refused(hub: TinyHub, tmp_path: Path) -> None:
    hub.garbled.add(UNET)
    assert f"what arrived of {UNET} is not what the hub has" in complaint(download(hub, tmp_path))
    hub.garbled.clear()
    assert download(hub, tmp_path).returncode == 0


def test_weights_that_were_damaged_on_this_disk_are_fetched_anew(
    hub: TinyHub, tmp_path: Path
) -> None:
    assert download(hub, tmp_path).returncode == 0
    with (snapshot(tmp_path) / UNET).resolve().open("r+b") as file:
        file.truncate(2_000_000)
    done = download(hub, tmp_path)
    assert done.returncode == 0, done.stderr
    assert (snapshot(tmp_path) / UNET).read_bytes() == demo_files()[UNET]


def test_a_disk_that_is_too_small_is_told_before_anything_is_fetched(
    hub: TinyHub, tmp_path: Path
) -> None:
    full = (
        "import shutil, sys, collections;"
        "shutil.disk_usage = lambda _: collections.namedtuple('U', 'free')(10_000_000);"
        "sys.argv = ['koala', 'download', 'someone/koala'];"
        "from koala.cli import app; app()"
    )
    done = subprocess.run(
        [sys.executable, "-c", full],
        env=environment(hub, tmp_path),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert "does not fit on the disk" in complaint(done)
    assert not [method for method, _, _ in hub.requests if method == "GET"]


def test_a_folder_is_checked_instead_of_downloaded(hub: TinyHub, tmp_path: Path) -> None:
    done = download(hub, tmp_path, "koala-demo")
    assert done.returncode == 0, done.stderr
    assert "nothing to download" in done.stdout
    assert not hub.requests


def test_a_hub_that_is_out_of_reach_is_one_clear_line(hub: TinyHub, tmp_path: Path) -> None:
    hub.close()
    line = complaint(download(hub, tmp_path))
    assert f"{REPO} is not in the cache and the hub is out of reach" in line


@pytest.mark.parametrize("config", [{"force_upcast": True}, {"force_upcast": False}])
def test_a_vae_that_overflows_in_fp16_brings_the_one_that_does_not(
    config: dict[str, bool], tmp_path: Path
) -> None:
    files = demo_files()
    files["vae/config.json"] = json.dumps(json.loads(files["vae/config.json"]) | config).encode()
    vae = {
        "config.json": files["vae/config.json"],
        "diffusion_pytorch_model.safetensors": files[
            "vae/diffusion_pytorch_model.fp16.safetensors"
        ],
        "sdxl_vae.safetensors": b"for another program",
    }
    hub = TinyHub({"etri-vilab/koala-700m": files, "madebyollin/sdxl-vae-fp16-fix": vae})
    try:
        done = download(hub, tmp_path, "koala-700m")
    finally:
        hub.close()
    if config["force_upcast"]:
        # The catalogue pins this one, to a commit that our hub does not have.
        assert "madebyollin/sdxl-vae-fp16-fix at revision 207b116" in complaint(done)
    else:
        assert done.returncode == 0, done.stderr
        assert "madebyollin" not in done.stdout
