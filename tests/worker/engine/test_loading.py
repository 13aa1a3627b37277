"""What can be loaded, and what one is told about the rest."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from koala.catalogue import DEMO_FOLDER
from tests.worker.engine.support import images, run, sample
from worker.engine import Engine, ModelLoadError, ResidentPipeline


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the demo model to spoil."""
    return Path(shutil.copytree(DEMO_FOLDER, tmp_path / "model"))


def edit(path: Path, **changes: Any) -> None:
    """Change entries of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def rename_weights(folder: Path, rename: Callable[[str], str]) -> None:
    """Give every weight file of a model another name."""
    for weights in list(folder.glob("*/*.safetensors")):
        weights.rename(weights.with_name(rename(weights.name)))


def complaint(model: str | Path, **arguments: Any) -> str:
    """The one line that loading ``model`` ends with."""
    with pytest.raises(ModelLoadError) as caught:
        ResidentPipeline.load(model, **({"device": "cpu"} | arguments))
    message = str(caught.value)
    assert message
    assert "\n" not in message
    return message


def test_a_folder_loads_in_fp32_on_a_cpu(pipeline: ResidentPipeline) -> None:
    assert pipeline.device.type == "cpu"
    assert pipeline.dtype == torch.float32
    assert pipeline.scheduler_label() == "Euler"
    assert pipeline.name == str(DEMO_FOLDER)
    assert (pipeline.native_side, pipeline.side_multiple, pipeline.vae_scale_factor) == (64, 16, 4)
    stored = sum(path.stat().st_size for path in DEMO_FOLDER.glob("*/*.safetensors"))
    assert pipeline.parameter_bytes == pytest.approx(2 * stored, rel=0.02)


def test_scheduler_overrides_replace_the_checkpoints_settings(folder: Path) -> None:
    edit(folder / "scheduler" / "scheduler_config.json", timestep_spacing="leading")
    plain = ResidentPipeline.load(folder, device="cpu")
    trailing = ResidentPipeline.load(
        folder, device="cpu", scheduler_overrides={"timestep_spacing": "trailing"}
    )
    assert plain.new_scheduler(4).timesteps.tolist() == [751, 501, 251, 1]
    assert trailing.new_scheduler(4).timesteps.tolist() == [999, 749, 499, 249]


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_fp16_files_are_taken_where_there_are_no_others(dtype: str, folder: Path) -> None:
    rename_weights(folder, lambda name: name.replace(".safetensors", ".fp16.safetensors"))
    pipeline = ResidentPipeline.load(folder, device="cpu", dtype=dtype)
    assert pipeline.dtype == getattr(torch, dtype)


def test_of_two_number_formats_fp16_is_taken_for_fp16_only(folder: Path) -> None:
    for weights in list(folder.glob("*/*.safetensors")):
        shutil.copy(weights, weights.with_suffix(".fp16.safetensors"))
    weights = folder / "unet" / "diffusion_pytorch_model.fp16.safetensors"
    tensors = load_file(weights)
    save_file({name: 2 * value for name, value in tensors.items()}, weights)
    half = ResidentPipeline.load(folder, device="cpu", dtype="float16")
    full = ResidentPipeline.load(folder, device="cpu", dtype="float32")

    def bias(pipeline: ResidentPipeline) -> torch.Tensor:
        return pipeline._unet.conv_out.bias.float()

    assert torch.allclose(bias(half), 2 * bias(full), atol=1e-3)
    assert not torch.allclose(bias(half), bias(full), atol=1e-3)


def test_a_vae_that_overflows_in_fp16_is_kept_in_fp32(folder: Path) -> None:
    edit(folder / "vae" / "config.json", force_upcast=True)
    pipeline = ResidentPipeline.load(folder, device="cpu", dtype="float16")
    assert pipeline.decode(torch.zeros(1, 4, 8, 8, dtype=torch.float16)).dtype == torch.float32
    drawn = images(run(Engine(pipeline, max_rows=2), [sample("a")]))
    assert drawn["a"].size == (32, 32)


def test_a_missing_folder_is_named() -> None:
    assert complaint("./nowhere") == "there is no folder ./nowhere"
    assert complaint(Path("no") / "where") == "there is no folder no/where"
    assert complaint("nowhere") == "there is no folder nowhere"


def test_a_hub_id_that_is_not_cached_is_refused_offline() -> None:
    message = complaint("koala-serve-tests/not-there", revision="abc")
    assert message == (
        "koala-serve-tests/not-there at revision abc is not in the cache "
        "and the hub is out of reach"
    )
    assert "not in the cache" in complaint("koala-serve-tests/not-there", dtype="float16")


def test_a_folder_without_an_index_is_no_diffusers_folder(tmp_path: Path) -> None:
    message = complaint(tmp_path)
    assert message == f"{tmp_path} is not a diffusers folder: it has no model_index.json"


def test_a_broken_index_is_named(folder: Path) -> None:
    (folder / "model_index.json").write_text("{")
    assert "broken model_index.json" in complaint(folder)
    (folder / "model_index.json").write_text("[]")
    assert "holds no object" in complaint(folder)


@pytest.mark.parametrize(
    ("file", "changes", "expected"),
    [
        ("model_index.json", {"_class_name": "FluxPipeline"}, "its pipeline is FluxPipeline"),
        ("model_index.json", {"_class_name": ["pipeline", "Evil"]}, "not SDXL-shaped"),
        ("model_index.json", {"text_encoder": [None, None]}, "it has no text_encoder"),
        ("unet/config.json", {"addition_embed_type": None}, "takes no size conditioning"),
        ("unet/config.json", {"in_channels": 9}, "its U-Net takes 9 channels, its VAE has 4"),
        ("unet/config.json", {"time_cond_proj_dim": 256}, "guidance scale as an input"),
    ],
)
def test_other_kinds_of_models_are_refused(
    file: str, changes: dict[str, Any], expected: str, folder: Path
) -> None:
    edit(folder / file, **changes)
    assert expected in complaint(folder)


def test_weights_must_be_safetensors(folder: Path) -> None:
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    assert complaint(folder).startswith(
        f"{folder} has only pickled weights in unet/ (unet/diffusion_pytorch_model.bin)"
    )


def test_truncated_weights_are_one_clear_line(folder: Path) -> None:
    weights = folder / "vae" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert complaint(folder) == (
        f"{folder} has a broken vae/diffusion_pytorch_model.safetensors: "
        "it is truncated within its header"
    )


def test_a_config_that_does_not_fit_the_weights_is_one_clear_line(folder: Path) -> None:
    edit(folder / "unet" / "config.json", block_out_channels=[32, 64, 96])
    assert complaint(folder).startswith(f"{folder} cannot be loaded: ")


def test_code_beside_the_weights_is_not_run(folder: Path, tmp_path: Path) -> None:
    trap = tmp_path / "sprung"
    (folder / "unet" / "evil.py").write_text(f"open({str(trap)!r}, 'w')")
    edit(folder / "model_index.json", unet=["evil", "UNet2DConditionModel"])
    complaint(folder)
    assert not trap.exists()


def test_a_scheduler_setting_that_makes_no_sense_is_one_clear_line() -> None:
    message = complaint(DEMO_FOLDER, scheduler_overrides={"beta_schedule": "nonsense"})
    assert "nonsense is not implemented" in message
    message = complaint(DEMO_FOLDER, scheduler_overrides={"timestep_spicing": "trailing"})
    assert message == "EulerDiscreteScheduler has no setting timestep_spicing"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"device": "gpu"}, "'gpu' is not a device"),
        ({"device": "cuda:63"}, "the device cuda:63 is not here"),
        ({"dtype": "int8"}, "'int8' is not a dtype"),
    ],
)
def test_unknown_devices_and_dtypes_are_named(arguments: dict[str, Any], expected: str) -> None:
    assert expected in complaint(DEMO_FOLDER, **arguments)
