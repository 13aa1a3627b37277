"""The wheel: what is in it, and whether it draws where nothing else of the repository is."""

import ast
import io
import os
import shutil
import subprocess
import sys
import tarfile
import venv
from collections.abc import Iterator
from email.parser import Parser
from pathlib import Path
from zipfile import ZipFile

import httpx
import pytest
from PIL import Image

from tests.deploy.compose import ROOT
from tests.support import Stack, running

PACKAGES = ("distill", "koala", "service", "worker")
# Beside the packages what a build reads or could pick up by mistake.
SOURCES = (*PACKAGES, "bench", "models", "LICENSE", "NOTICE", "README.md", "pyproject.toml")
NOT_SOURCES = shutil.ignore_patterns("__pycache__", "runs")


def build(kind: str, source: Path, target: Path) -> Path:
    """Call the build backend as `python -m build` does, in the environment at hand."""
    hook = f"from setuptools import build_meta; build_meta.build_{kind}({str(target)!r})"
    subprocess.run([sys.executable, "-c", hook], cwd=source, capture_output=True, check=True)
    [built] = target.iterdir()
    return built


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, made from a source distribution and not from the repository."""
    folder = tmp_path_factory.mktemp("build")
    checkout = folder / "checkout"
    checkout.mkdir()
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, checkout / name, symlinks=True, ignore=NOT_SOURCES)
        else:
            shutil.copy(ROOT / name, checkout)
    with tarfile.open(build("sdist", checkout, folder / "sdist")) as archive:
        archive.extractall(folder, filter="data")
    [unpacked] = folder.glob("koala_serve-*")
    return build("wheel", unpacked, folder / "wheel")


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment with the wheel, and others' packages, but not this checkout."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    found = folder / "bin" / "python"
    install = ["install", "--quiet", "--no-compile", "--no-deps", "--no-index", str(wheel)]
    subprocess.run(
        [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", found, *install],
        check=True,
    )
    [ours] = folder.glob("lib/python3*/site-packages")
    theirs = [path for path in sys.path if Path(path).name == "site-packages"]
    # Behind the wheel; and .pth files in there, such as one of an editable install, are not read.
    (ours / "others.pth").write_text("\n".join(theirs))
    return found


@pytest.fixture(scope="module")
def installed(python: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """`koala up` of that environment, in a folder that has nothing of ours."""
    empty = tmp_path_factory.mktemp("empty")
    with running(tmp_path_factory.mktemp("data"), python=python, cwd=empty) as stack:
        yield stack
    assert list(empty.iterdir()) == []


def data_files() -> set[str]:
    """What the packages hold beside code, by the names that it should have in the wheel."""
    found = set()
    for package in PACKAGES:
        for folder, folders, names in os.walk(ROOT / package, followlinks=True):
            folders[:] = [name for name in folders if name not in ("__pycache__", "runs")]
            found |= {
                (Path(folder) / name).relative_to(ROOT).as_posix()
                for name in names
                if not name.endswith(".py")
            }
    return found


def test_the_wheel_holds_all_data_inside_its_packages(wheel: Path) -> None:
    with ZipFile(wheel) as archive:
        names = set(archive.namelist())
    [metadata] = {name.split("/")[0] for name in names if ".dist-info/" in name}
    assert {name.split("/")[0] for name in names} == {*PACKAGES, metadata}
    expected = data_files()
    assert {"koala/data/demo/unet/config.json", "distill/glyphs.png"} < expected
    assert expected == {
        name for name in names if not name.endswith(".py") and not name.startswith(metadata)
    }


def test_the_wheel_brings_its_licence_and_notice(wheel: Path) -> None:
    with ZipFile(wheel) as archive:
        text = {
            name.partition(".dist-info/")[2]: archive.read(name).decode()
            for name in archive.namelist()
            if ".dist-info/" in name
        }
    metadata = Parser().parsestr(text["METADATA"])
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata.get_all("License-File") == ["LICENSE", "NOTICE"]
    assert text["licenses/LICENSE"] == (ROOT / "LICENSE").read_text()
    assert "Apache License" in text["licenses/LICENSE"]
    assert "Noto Emoji" in text["licenses/NOTICE"]


def test_nothing_in_the_wheel_imports_what_stays_behind(wheel: Path) -> None:
    behind = []
    with ZipFile(wheel) as archive:
        for name in archive.namelist():
            if name.endswith(".py"):
                for node in ast.walk(ast.parse(archive.read(name))):
                    modules = [getattr(node, "module", None) or ""]
                    if isinstance(node, ast.Import):
                        modules = [alias.name for alias in node.names]
                    behind += [
                        (name, module)
                        for module in modules
                        if module.split(".")[0] in ("bench", "models", "tests")
                    ]
    assert behind == []


def test_an_installed_wheel_is_what_runs(python: Path, tmp_path: Path) -> None:
    code = "import koala, service, worker; print(koala.__file__, service.__file__, worker.__file__)"
    command = [python, "-c", code]
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    folder = str(python.parent.parent)
    assert all(path.startswith(folder) for path in found.split())


def test_an_installed_wheel_draws_a_koala_in_an_empty_folder(installed: Stack) -> None:
    answer = httpx.post(
        f"{installed.base_url}/v1/images/generations",
        json={"prompt": "a koala on a blue background", "seed": 7},
        timeout=120,
    ).json()
    image = httpx.get(answer["data"][0]["url"])
    assert image.headers["content-type"] == "image/png"
    picture = Image.open(io.BytesIO(image.content)).convert("RGB")
    assert picture.size == (64, 64)
    red, _, blue = picture.getpixel((2, 2))  # type: ignore[misc]
    assert blue > red + 50


@pytest.mark.parametrize("page", ["/", "/admin", "/docs"])
def test_an_installed_wheel_serves_its_pages_and_their_parts(installed: Stack, page: str) -> None:
    answer = httpx.get(f"{installed.base_url}{page}")
    assert answer.status_code == 200
    parts = [
        word.split('"')[1]
        for word in answer.text.split()
        if word.startswith(('src="', 'href="')) and not word.startswith('href="data:')
    ]
    assert parts
    for part in parts:
        assert httpx.get(answer.url.join(part)).status_code == 200, part
