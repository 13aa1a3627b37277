"""The folder of LoRAs: what it offers, and that no name leads out of it."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from koala.lora import LoraFolder, LoraUse, UnknownLora
from koala.settings import Settings


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of files, some of which are LoRAs, beside one that is nobody's business."""
    (tmp_path / "secret.safetensors").touch()
    folder = tmp_path / "loras"
    folder.mkdir()
    for name in ("pixel art v1.2", "watercolour", "Ölbild", "a_(b)+c-d"):
        (folder / f"{name}.safetensors").touch()
    for name in ("notes.txt", "old.pt", "a:b.safetensors", "<i>.safetensors", ".safetensors"):
        (folder / name).touch()
    (folder / "directory.safetensors").mkdir()
    return folder


def test_files_that_can_be_named_are_offered(folder: Path) -> None:
    loras = LoraFolder(folder)
    assert loras.names() == ["a_(b)+c-d", "pixel art v1.2", "watercolour", "Ölbild"]
    assert loras.find("watercolour") == folder / "watercolour.safetensors"


def test_what_comes_and_goes_is_noticed(folder: Path) -> None:
    loras = LoraFolder(folder)
    (folder / "new.safetensors").touch()
    assert "new" in loras.names()
    (folder / "new.safetensors").unlink()
    with pytest.raises(UnknownLora):
        loras.find("new")


@pytest.mark.parametrize(
    "name", ["../secret", "/etc/passwd", "..", "", "loras/../watercolour", "watercolour\x00", "old"]
)
def test_no_name_leads_out_of_the_folder(folder: Path, name: str) -> None:
    with pytest.raises(UnknownLora):
        LoraFolder(folder).find(name)


def test_a_name_that_is_misspelt_is_answered_with_those_near_it(folder: Path) -> None:
    with pytest.raises(UnknownLora, match=r"^'?there is no LoRA 'watercolor'; near it: 'waterc"):
        LoraFolder(folder).find("watercolor")


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no folder .*nowhere"):
        LoraFolder(tmp_path / "nowhere")


def test_without_a_folder_there_are_none() -> None:
    assert LoraFolder(None).names() == []
    assert not LoraFolder(None).is_configured


def test_a_use_reads_as_automatic1111_writes_it() -> None:
    assert str(LoraUse(name="pixel art", weight=0.8)) == "<lora:pixel art:0.8>"
    assert str(LoraUse(name="slider", weight=-2)) == "<lora:slider:-2>"


def test_fused_projections_and_loras_exclude_each_other(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="KOALA_FUSE_QKV and KOALA_LORA_DIR exclude"):
        Settings(fuse_qkv=True, lora_dir=tmp_path)
