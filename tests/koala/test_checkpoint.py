import json
from pathlib import Path

import pytest

from koala.catalogue import DEMO_FOLDER
from koala.checkpoint import (
    CheckpointError,
    check_folder,
    check_weights,
    files_of,
    pipeline_files,
    vae_files,
    weight_files,
)

STEM = "unet/diffusion_pytorch_model"


def safetensors(path: Path, header: bytes, data: bytes) -> Path:
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)
    return path


def test_the_demo_model_is_whole() -> None:
    check_folder(DEMO_FOLDER, "it")
    assert "tokenizer/tokenizer_config.json" in pipeline_files(files_of(DEMO_FOLDER), "it")
    assert "README.md" not in pipeline_files(files_of(DEMO_FOLDER), "it")


@pytest.mark.parametrize(
    ("there", "chosen"),
    [
        ([".safetensors"], [".safetensors"]),
        ([".safetensors", ".fp16.safetensors"], [".fp16.safetensors"]),
        ([".safetensors", ".bin", ".non_ema.safetensors.txt"], [".safetensors"]),
        (
            [".fp16-00001-of-00002.safetensors", ".fp16-00002-of-00002.safetensors"],
            [".fp16-00001-of-00002.safetensors", ".fp16-00002-of-00002.safetensors"],
        ),
        ([".safetensors", "-00001-of-00001.safetensors"], [".safetensors"]),
    ],
)
def test_the_fp16_variant_is_enough(there: list[str], chosen: list[str]) -> None:
    names = [STEM + end for end in there] + ["unet/openvino_model.safetensors"]
    assert weight_files(names, "unet", "it") == [STEM + end for end in chosen]


@pytest.mark.parametrize(
    ("there", "complaint"),
    [
        ([], r"it has no safetensors weights in unet/"),
        ([".bin"], r"only pickled weights in unet/ \(unet/diffusion_pytorch_model\.bin\)"),
        ([".ckpt"], r"only pickled weights"),
        (["-00001-of-00003.safetensors", "-00003-of-00003.safetensors"], "lacks shard 2 of 3"),
    ],
)
def test_weights_that_cannot_be_used_are_refused(there: list[str], complaint: str) -> None:
    with pytest.raises(CheckpointError, match=complaint):
        weight_files([STEM + end for end in there], "unet", "it")


@pytest.mark.parametrize(
    "name",
    ["model_index.json", "scheduler/scheduler_config.json", "vae/config.json", "tokenizer_2"],
)
def test_what_is_missing_is_named(name: str) -> None:
    names = [each for each in files_of(DEMO_FOLDER) if not each.startswith(name)]
    with pytest.raises(CheckpointError, match=f"it has no {name}"):
        pipeline_files(names, "it")


def test_a_vae_alone_is_two_files() -> None:
    names = ["config.json", "diffusion_pytorch_model.safetensors", "sdxl_vae.safetensors"]
    assert vae_files([*names, "README.md"], "it") == names[:2]


def test_a_file_that_is_not_as_long_as_it_says_is_refused(tmp_path: Path) -> None:
    tensor = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    header = json.dumps({"a": tensor, "__metadata__": {}}).encode()
    path = tmp_path / "a.safetensors"
    check_weights(safetensors(path, header, bytes(8)), "broken a")
    size = path.stat().st_size
    for data, complaint in [
        (bytes(5), f"broken a: it is truncated, {size - 3} of {size} bytes are there"),
        (bytes(9), "broken a: it has 1 bytes too many"),
    ]:
        with pytest.raises(CheckpointError, match=complaint):
            check_weights(safetensors(path, header, data), "broken a")
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(CheckpointError, match="truncated within its header"):
        check_weights(path, "broken a")


@pytest.mark.parametrize(
    "content", [b"", b"1234", b"<!DOCTYPE html><html></html>", b"\x02" + bytes(7) + b"[]"]
)
def test_a_file_of_another_kind_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="broken a: it is no safetensors file"):
        check_weights(path, "broken a")
