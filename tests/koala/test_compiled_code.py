"""Code that torch compiled is loaded from where no other user could have put it."""

import os
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from koala import compiled_code


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where compiled code would go, in a temporary directory of the test's own."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path / f"koala-compiled-{os.geteuid()}"


def test_compiled_code_goes_into_a_folder_of_this_user_alone(folder: Path) -> None:
    for _ in range(2):
        environ: dict[str, str] = {}
        compiled_code.configure(environ)
        assert environ == {"TORCHINDUCTOR_CACHE_DIR": str(folder)}
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_folder_that_the_operator_names_is_taken(folder: Path) -> None:
    environ = {"TORCHINDUCTOR_CACHE_DIR": "/var/cache/koala"}
    compiled_code.configure(environ)
    assert environ == {"TORCHINDUCTOR_CACHE_DIR": "/var/cache/koala"}
    assert not folder.exists()


@pytest.mark.parametrize("command", [["work"], ["measure", "-o", "curves.json"]])
def test_a_folder_that_others_can_write_to_is_one_line_before_torch_is_loaded(
    folder: Path, tmp_path: Path, command: list[str]
) -> None:
    folder.mkdir()
    folder.chmod(0o777)
    env = {name: value for name, value in os.environ.items() if name != "TORCHINDUCTOR_CACHE_DIR"}
    done = subprocess.run(
        [sys.executable, "-m", "koala", *command],
        cwd=tmp_path,
        env=env | {"KOALA_COMPILE": "1", "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert line.startswith("koala: KOALA_COMPILE: compiled code cannot be kept in ")
    assert f"{folder}: others may write to it" in line
    assert line.endswith("set TORCHINDUCTOR_CACHE_DIR.")


@pytest.mark.parametrize("make", ["link", "file"])
def test_what_is_no_folder_is_refused(folder: Path, tmp_path: Path, make: str) -> None:
    if make == "link":
        (tmp_path / "elsewhere").mkdir()
        folder.symlink_to("elsewhere")
    else:
        folder.touch()
    with pytest.raises(compiled_code.NoPlace, match=str(folder)):
        compiled_code.configure({})
