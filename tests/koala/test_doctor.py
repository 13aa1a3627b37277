"""What `koala doctor` says of the image store."""

from pathlib import Path

import pytest
from rich.console import Console

from koala.commands.doctor import run
from koala.settings import Settings


def told(settings: Settings) -> tuple[bool, str]:
    """Whether nothing failed, and the line about images."""
    console = Console(record=True, width=300, quiet=False)
    sound = run(settings, console)
    [line] = [each for each in console.export_text().splitlines() if each.startswith("images")]
    return sound, " ".join(line.split())


def test_a_store_that_names_a_file_fails(tmp_path: Path) -> None:
    store = tmp_path / "images"
    store.write_text("no folder")
    sound, line = told(Settings(data_dir=tmp_path / "data", image_store=str(store)))
    assert not sound
    assert line.startswith(f"images fail {store}: nothing can be written there: ")


def test_a_store_inside_a_file_fails(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    store = tmp_path / "file" / "images"
    sound, line = told(Settings(data_dir=tmp_path / "data", image_store=str(store)))
    assert not sound
    assert line == f"images fail {store}: {tmp_path / 'file'} is no writable folder"


def test_a_remote_store_that_refuses_fails_without_telling_its_password(tmp_path: Path) -> None:
    url = "ftp://koala:secret@127.0.0.1:1/images"
    sound, line = told(Settings(data_dir=tmp_path, image_store=url))
    assert not sound
    assert line.startswith("images fail 127.0.0.1:1/images: ")
    assert "secret" not in line


@pytest.mark.parametrize("exists", [True, False])
def test_a_store_that_can_be_used_is_left_as_it_was(tmp_path: Path, exists: bool) -> None:
    store = tmp_path / "images"
    if exists:
        store.mkdir()
    _, line = told(Settings(data_dir=tmp_path / "data", image_store=str(store)))
    assert line.startswith(f"images ok {store}, ") and line.endswith(" GiB free")
    assert store.exists() is exists
    assert not exists or list(store.iterdir()) == []
