"""Which build of torch `make run` takes, with fake wheels, fake cards and an index on loopback."""

import importlib.metadata
import shutil
import socket
import subprocess
import threading
import venv
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from zipfile import ZipFile

import pytest

from deploy import torch_build
from deploy.torch_build import Choice, choose
from tests.deploy.compose import ROOT
from tests.support import free_port

PIN = "2.13.0"
MAKE = shutil.which("make") or "make"


def fake_wheel(folder: Path, version: str) -> Path:
    """A torch that pip installs: metadata, and nothing else."""
    folder.mkdir(parents=True, exist_ok=True)
    wheel = folder / f"torch-{version}-py3-none-any.whl"
    info = f"torch-{version}.dist-info"
    files = {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: torch\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": "",
    }
    with ZipFile(wheel, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return wheel


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def index(folder: Path, *versions: str) -> Iterator[str]:
    """An index with these versions of torch, on loopback."""
    for version in versions:
        fake_wheel(folder / "torch", version)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine without a card whose pip is not configured."""
    programs = tmp_path / "programs"
    programs.mkdir()
    # Other tests run beside this one, and pip starts slowly then.
    monkeypatch.setattr(torch_build, "_LOOK_SECONDS", 120)
    monkeypatch.setenv("PATH", str(programs))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for name in ("CONSTRAINT", "EXTRA_INDEX_URL", "FIND_LINKS", "INDEX_URL", "NO_INDEX"):
        monkeypatch.delenv(f"PIP_{name}", raising=False)


@pytest.fixture
def chosen(tmp_path: Path) -> Callable[..., Choice]:
    """``choose`` on a Linux machine without a card, and with no way out."""
    devices = tmp_path / "dev"
    devices.mkdir()
    nowhere = f"http://127.0.0.1:{free_port()}"
    return partial(choose, PIN, platform="linux", devices=devices, cpu_index=nowhere)


def put_nvidia_smi(tmp_path: Path, script: str) -> None:
    program = tmp_path / "programs" / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)


def test_without_a_card_torch_comes_from_the_cpu_index(
    chosen: Callable[..., Choice], tmp_path: Path
) -> None:
    with index(tmp_path / "index", "2.13.0+cpu", "2.14.0+cpu") as url:
        choice = chosen(cpu_index=url)
    assert (choice.requirement, choice.options) == ("torch==2.13.0", ("--index-url", url))
    assert choice.why == f"2.13.0+cpu from {url}: there is no NVIDIA card"


def test_an_index_that_refuses_or_lacks_the_version_leaves_it_to_pip(
    chosen: Callable[..., Choice], tmp_path: Path
) -> None:
    refused = chosen()
    with index(tmp_path / "index", "2.12.0+cpu") as url:
        lacking = chosen(cpu_index=url)
    for choice in (refused, lacking):
        assert (choice.requirement, choice.options) == ("torch==2.13.0", ())
        assert "may bring gigabytes of CUDA" in choice.why
        assert "cannot be reached or does not have 2.13.0" in choice.why


@pytest.mark.parametrize(("answer", "look"), [(1, 600), (600, 5)])
def test_an_index_that_never_answers_is_given_up(
    chosen: Callable[..., Choice], monkeypatch: pytest.MonkeyPatch, answer: int, look: int
) -> None:
    """By the limit of one connection, and by that of the whole look."""
    monkeypatch.setattr(torch_build, "_ANSWER_SECONDS", answer)
    monkeypatch.setattr(torch_build, "_LOOK_SECONDS", look)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        choice = chosen(cpu_index=f"http://127.0.0.1:{silent.getsockname()[1]}")
    assert choice.options == ()
    assert "cannot be reached" in choice.why


def test_a_device_file_is_a_card(chosen: Callable[..., Choice], tmp_path: Path) -> None:
    (tmp_path / "dev" / "nvidia0").touch()
    with index(tmp_path / "index", "2.13.0+cpu") as url:
        choice = chosen(cpu_index=url)
    assert choice.options == ()
    assert f"with CUDA: {tmp_path}/dev/nvidia0 is an NVIDIA card" in choice.why


@pytest.mark.parametrize(
    ("script", "found"),
    [
        ("echo 'GPU 0: NVIDIA GeForce RTX 3060 Ti (UUID: GPU-1)'", "nvidia-smi"),
        ("echo 'NVIDIA-SMI has failed: no driver'; exit 9", None),
        ("echo 'No devices found.'", None),
    ],
)
def test_nvidia_smi_knows_of_cards_without_device_files(
    tmp_path: Path, script: str, found: str | None
) -> None:
    put_nvidia_smi(tmp_path, script)
    (tmp_path / "nvidia-uvm").touch()
    assert torch_build.nvidia_card(tmp_path) == found


def test_elsewhere_than_on_linux_it_is_left_to_pip(
    chosen: Callable[..., Choice], tmp_path: Path
) -> None:
    with index(tmp_path / "index", "2.13.0") as url:
        choice = chosen(platform="darwin", cpu_index=url)
    assert (choice.requirement, choice.options) == ("torch==2.13.0", ())


@pytest.mark.parametrize("version", ["2.13.0", "2.13.0+cpu"])
def test_a_torch_that_pip_is_set_up_to_find_is_kept(
    chosen: Callable[..., Choice],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    version: str,
) -> None:
    with index(tmp_path / "index", "2.13.0+cpu") as cpu, index(tmp_path / "own", version) as own:
        monkeypatch.setenv("PIP_EXTRA_INDEX_URL", own)
        by_index = chosen(cpu_index=cpu)
        monkeypatch.delenv("PIP_EXTRA_INDEX_URL")
        settings = tmp_path / "pip.conf"
        settings.write_text(
            f"[global]\nfind-links = {fake_wheel(tmp_path / 'w', version).parent}\n"
        )
        monkeypatch.setenv("PIP_CONFIG_FILE", str(settings))
        by_folder = chosen(cpu_index=cpu)
    for choice in (by_index, by_folder):
        assert choice.options == ("--index-url", "file:///dev/null")
        assert choice.why == f"{version}, where pip's configuration says that it is"


def test_another_version_that_pip_is_set_up_to_find_is_not_what_is_wanted(
    chosen: Callable[..., Choice], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", str(fake_wheel(tmp_path / "own", "2.12.0+cpu").parent))
    with index(tmp_path / "index", "2.13.0+cpu") as cpu:
        choice = chosen(cpu_index=cpu)
    assert choice.options == ("--index-url", cpu)


@pytest.mark.parametrize(
    ("line", "kept"), [("torch==2.13.0+rocm7", True), ("torch<=2.14.1", False)]
)
def test_a_constraint_of_pip_that_names_a_build_is_kept_and_a_range_is_none(
    chosen: Callable[..., Choice],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    line: str,
    kept: bool,
) -> None:
    (tmp_path / "constraints.txt").write_text(f"numpy<3\n{line}\ntorchvision==0.28.0\n")
    monkeypatch.setenv("PIP_CONSTRAINT", str(tmp_path / "constraints.txt"))
    choice = chosen()
    assert (choice.requirement == "torch") == kept
    assert (line in choice.why) == kept


def test_an_index_that_the_user_names_wins_over_the_machine(
    chosen: Callable[..., Choice], tmp_path: Path
) -> None:
    (tmp_path / "dev" / "nvidia0").touch()
    choice = chosen("https://example.com/cu126")
    assert choice.options == ("--index-url", "https://example.com/cu126")
    assert "TORCH_INDEX" in choice.why


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """A Python of its own with pip and nothing else."""
    venv.create(tmp_path / "venv", symlinks=True)
    [packages] = (tmp_path / "venv").glob("lib/python3*/site-packages")
    pip = importlib.metadata.distribution("pip")
    for name in ("pip", f"pip-{pip.version}.dist-info"):
        (packages / name).symlink_to(Path(str(pip.locate_file(name))))
    return tmp_path / "venv" / "bin" / "python"


def test_torch_is_installed_and_stays_from_then_on(
    python: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def install(url: str) -> str:
        script = ROOT / "deploy" / "torch_build.py"
        command = [python, script, f"--index={url}", f"--output={tmp_path / 'constraints.txt'}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        [line] = done.stdout.splitlines()
        return line

    ours = (ROOT / "constraints.txt").read_text()
    with index(tmp_path / "index", f"{PIN}+cpu", "2.99.0") as url:
        assert install(url) == f"torch: {PIN} from TORCH_INDEX, {url}."
    assert (tmp_path / "constraints.txt").read_text() == ours
    assert install("") == f"torch: {PIN}+cpu is installed and is kept."

    other = fake_wheel(tmp_path / "other", "2.12.1+cu126")
    pip = [python, "-m", "pip", "install", "--quiet", "--no-index", other]
    subprocess.run(pip, check=True, capture_output=True)
    line = install("")
    assert line == f"torch: 2.12.1+cu126 is installed and is kept; constraints.txt asks for {PIN}."
    written = (tmp_path / "constraints.txt").read_text()
    assert written == ours.replace(f"\ntorch=={PIN}\n", "\ntorch==2.12.1+cu126\n")


def test_a_torch_that_cannot_be_had_ends_the_installation(python: Path, tmp_path: Path) -> None:
    script, output = ROOT / "deploy" / "torch_build.py", tmp_path / "constraints.txt"
    with index(tmp_path / "index", "2.12.0") as url:
        command = [python, script, f"--index={url}", f"--output={output}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert f"torch=={PIN}" in done.stderr
    assert not output.exists()


def test_everything_is_installed_after_torch_and_with_the_same_constraints(tmp_path: Path) -> None:
    make = [MAKE, "--dry-run", f"VENV={tmp_path}/fresh", "run"]
    lines = subprocess.run(make, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    [chooser] = [line for line in lines.splitlines() if "torch_build.py" in line]
    [rest] = [line for line in lines.splitlines() if "--editable" in line]
    assert f"--output={tmp_path}/fresh/constraints.txt" in chooser
    assert f"--constraint {tmp_path}/fresh/constraints.txt" in rest
    assert lines.index(chooser) < lines.index(rest)
