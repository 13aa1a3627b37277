"""What each speed-up does to the images, and what one is told where one does not work."""

import shutil

import numpy as np
import pytest
import structlog
import torch
from PIL import Image

from koala.catalogue import DEMO_FOLDER
from tests.worker.engine.conftest import TRAILING
from tests.worker.engine.support import images, largest_difference, run, sample, without_compiler
from worker.engine import Engine, ModelLoadError, ResidentPipeline, SpeedUps
from worker.engine.speedups import NO_SPEED_UPS

REQUESTS = [
    sample("guided", width=64, height=64, num_inference_steps=4),
    sample("plain", width=64, height=64, guidance_scale=1.0, seed=8),
    sample("small", num_inference_steps=3, seed=9),
]


def load(speed_ups: SpeedUps = NO_SPEED_UPS, dtype: str = "auto") -> ResidentPipeline:
    """The demo model on the CPU."""
    return ResidentPipeline.load(
        DEMO_FOLDER, device="cpu", dtype=dtype, scheduler_overrides=TRAILING, speed_ups=speed_ups
    )


def draw(pipeline: ResidentPipeline) -> dict[str, Image.Image]:
    """All requests, drawn together."""
    return images(run(Engine(pipeline, max_rows=8), REQUESTS))


def is_channels_last(module: torch.nn.Module) -> bool:
    """Whether all weights of spatial convolutions are."""
    kernels = [p for p in module.parameters() if p.dim() == 4 and p.shape[2] > 1 and p.shape[1] > 1]
    return all(p.is_contiguous(memory_format=torch.channels_last) for p in kernels)


@pytest.fixture(scope="module")
def plain(pipeline: ResidentPipeline) -> dict[str, Image.Image]:
    """The images without any speed-up."""
    return draw(pipeline)


@pytest.mark.parametrize(
    "speed_ups",
    [
        SpeedUps(channels_last=True),
        SpeedUps(fuse_qkv=True),
        SpeedUps(channels_last=True, fuse_qkv=True),
    ],
    ids=str,
)
def test_images_stay_what_they_are(speed_ups: SpeedUps, plain: dict[str, Image.Image]) -> None:
    drawn = draw(load(speed_ups))
    assert drawn.keys() == plain.keys()
    for key, image in drawn.items():
        assert largest_difference(image, plain[key]) <= 1


@pytest.mark.skipif(
    shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU"
)
def test_a_compiled_unet_draws_the_same_image(plain: dict[str, Image.Image]) -> None:
    pipeline = load(SpeedUps(compile=True, most_rows=2))
    with structlog.testing.capture_logs() as logs:
        drawn = images(run(Engine(pipeline, max_rows=2), REQUESTS[:1]))
    assert largest_difference(drawn["guided"], plain["guided"]) <= 1
    # The one bucket it needs was compiled at the start.
    assert logs == []


def test_a_compiler_that_is_missing_is_one_line() -> None:
    with without_compiler(), pytest.raises(ModelLoadError) as caught:
        load(SpeedUps(compile=True))
    message = str(caught.value)
    assert message.startswith("KOALA_COMPILE: the U-Net cannot be compiled: ")
    assert "no-such-compiler" in message and "\n" not in message


def test_bfloat16_draws_nearly_the_same_images(plain: dict[str, Image.Image]) -> None:
    pipeline = load(dtype="bfloat16")
    assert pipeline.dtype == torch.bfloat16
    for key, image in draw(pipeline).items():
        difference = np.abs(np.asarray(image, np.int16) - np.asarray(plain[key], np.int16))
        # Measured: at most 2.4 on average, in an image of 32 px, and 17 for one pixel.
        assert 0 < difference.mean() < 5
        assert difference.max() < 40


def test_channels_last_weights_are_laid_out_so_in_unet_and_vae(pipeline: ResidentPipeline) -> None:
    faster = load(SpeedUps(channels_last=True))
    for module in (faster._unet, faster._vae):
        assert is_channels_last(module)
    for module in (pipeline._unet, pipeline._vae):
        assert not is_channels_last(module)


def test_fused_projections_take_no_memory_twice(pipeline: ResidentPipeline) -> None:
    assert load(SpeedUps(fuse_qkv=True)).parameter_bytes == pipeline.parameter_bytes


def test_a_dtype_that_the_device_only_emulates_is_warned_of(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("worker.engine.speedups.cpu_computes", lambda dtype: dtype.itemsize == 4)
    with structlog.testing.capture_logs() as logs:
        load(dtype="bfloat16")
    [line] = logs
    assert line["log_level"] == "warning"
    assert line["event"].startswith("KOALA_DTYPE") and line["dtype"] == "bfloat16"
    with structlog.testing.capture_logs() as logs:
        load()
    assert logs == []
