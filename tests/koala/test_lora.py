"""The folder of LoRAs: what it offers, and that no name leads out of it."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from koala.lora import LoraError, LoraFolder, LoraUse, UnknownLora
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
    assert loras.find("watercolour").path == folder / "watercolour.safetensors"


def test_a_link_that_leads_to_itself_hides_no_other_file(folder: Path) -> None:
    offered = LoraFolder(folder).names()
    (folder / "loop.safetensors").symlink_to("loop.safetensors")
    assert LoraFolder(folder).names() == offered != []
    with pytest.raises(LoraError, match="The LoRA 'loop' cannot be used: Too many levels"):
        LoraFolder(folder).find("loop")


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


def test_one_file_is_looked_at_however_many_there_are(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loras = LoraFolder(folder)
    looked: list[Path] = []
    stat = Path.stat

    def noted(self: Path, **how: Any) -> os.stat_result:
        looked.append(self)
        return stat(self, **how)

    def refused(*_: object) -> None:
        raise AssertionError("the folder is listed")

    monkeypatch.setattr(Path, "stat", noted)
    monkeypatch.setattr(os, "scandir", refused)
    monkeypatch.setattr(Path, "iterdir", refused)
    assert loras.find("watercolour").name == "watercolour"
    assert looked == [folder / "watercolour.safetensors"]


def test_a_name_longer_than_that_of_a_file_is_unknown(folder: Path) -> None:
    with pytest.raises(UnknownLora):
        LoraFolder(folder).find("ö" * 100)


def test_another_file_has_another_stamp(folder: Path) -> None:
    loras = LoraFolder(folder)
    before = loras.find("watercolour").stamp
    assert loras.find("watercolour").stamp == before
    (folder / "watercolour.safetensors").write_bytes(b"more")
    assert loras.find("watercolour").stamp != before


def safetensors(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


TENSOR = {"dtype": "F16", "shape": [2], "data_offsets": [0, 4]}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it is no safetensors file"),
        (b"not at all", "it is no safetensors file"),
        ((2**40).to_bytes(8, "little") + b"{}", "it is no safetensors file"),
        ((17 * 2**20).to_bytes(8, "little") + b"{}", "its header has 17825792 bytes, at most"),
        ((100).to_bytes(8, "little") + b"{}", "it is truncated within its header"),
        (safetensors([]), "it is no safetensors file"),
        (safetensors(b'{"a": ' + b"[" * 100_000), "it is no safetensors file"),
        (safetensors({"a": 1}), "it is no safetensors file"),
        (safetensors({"a": TENSOR | {"shape": [3]}}, bytes(4)), "it is no safetensors file"),
        (safetensors({"a": TENSOR | {"shape": [-2, -1]}}, bytes(4)), "it is no safetensors file"),
        (safetensors({"a": TENSOR | {"shape": ["2"]}}, bytes(4)), "it is no safetensors file"),
        (safetensors({"a": TENSOR, "b": TENSOR}, bytes(4)), "it is no safetensors file"),
        (safetensors({"a": TENSOR | {"data_offsets": [4, 8]}}, bytes(8)), "no safetensors file"),
        (safetensors({"a": TENSOR}, bytes(3)), "it is truncated, "),
        (safetensors({"a": TENSOR}, bytes(5)), "it has 1 bytes too many"),
        (safetensors({"\ud800": TENSOR}, bytes(4)), "it is no safetensors file"),
        (safetensors({"__metadata__": {"a": "b"}}), "it is empty"),
        (
            safetensors(
                {
                    str(i): {"dtype": "F16", "shape": [0], "data_offsets": [0, 0]}
                    for i in range(40_000)
                }
            ),
            "it has 40000 tensors",
        ),
    ],
)
def test_a_file_that_is_no_lora_of_any_model_is_refused_with_the_reason(
    content: bytes, reason: str, folder: Path
) -> None:
    (folder / "watercolour.safetensors").write_bytes(content)
    with pytest.raises(LoraError) as refusal:
        LoraFolder(folder).check("watercolour")
    assert str(refusal.value).startswith("The LoRA 'watercolour' cannot be used: ")
    assert reason in str(refusal.value)


def test_a_header_is_read_once_for_each_state_of_its_file(folder: Path) -> None:
    path, loras = folder / "watercolour.safetensors", LoraFolder(folder)
    path.write_bytes(safetensors({"a": TENSOR}, bytes(4)))
    loras.check("watercolour")
    before = path.stat()
    path.write_bytes(b"!" * before.st_size)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    loras.check("watercolour")
    os.utime(path)
    with pytest.raises(LoraError):
        loras.check("watercolour")


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
