"""Parts of the model that are elsewhere most of the time, and images that do not show it."""

from typing import Any

import numpy as np
import pytest
import torch

from koala.catalogue import DEMO_FOLDER
from tests.worker.engine.conftest import TRAILING
from tests.worker.engine.fake_cuda import FakeStreams, FakeUploads
from tests.worker.engine.support import images, largest_difference, run, sample
from worker.engine import Capacity, Engine, ModelLoadError, ResidentPipeline, SpeedUps
from worker.engine import device as devices
from worker.engine.decoder import Decoder
from worker.engine.residency import Residency

REQUESTS = [sample("a", width=64, height=64), sample("b", negative_prompt="a banana", seed=8)]


def load(residency: Residency = Residency.ALL) -> ResidentPipeline:
    return ResidentPipeline.load(
        DEMO_FOLDER, device="cpu", scheduler_overrides=TRAILING, residency=residency
    )


def draw(pipeline: ResidentPipeline) -> dict[Any, Any]:
    return images(run(Engine(pipeline, max_rows=8), REQUESTS))


@pytest.fixture
def uploads(monkeypatch: pytest.MonkeyPatch) -> FakeUploads:
    """How weights get to a device, told to the test."""
    fake = FakeUploads([])
    monkeypatch.setattr(devices, "uploads_to", lambda device: fake)
    return fake


def test_text_encoders_that_come_and_go_draw_the_same_pixels(
    pipeline: ResidentPipeline, uploads: FakeUploads
) -> None:
    offloading = load(Residency.OFFLOAD_TEXT)
    expected = draw(pipeline)
    for key, image in draw(offloading).items():
        assert largest_difference(image, expected[key]) == 0
    assert uploads.log


def test_text_encoders_leave_nothing_behind_on_the_device(
    pipeline: ResidentPipeline, uploads: FakeUploads
) -> None:
    offloading = load(Residency.OFFLOAD_TEXT)
    assert uploads.bytes_there == 0
    with torch.inference_mode():
        offloading.encode_prompts(["a koala", "a banana"])
    assert uploads.bytes_there == 0
    assert offloading.parameter_bytes < pipeline.parameter_bytes
    assert pipeline.parameter_bytes - offloading.parameter_bytes == pipeline._text.bytes


@torch.inference_mode()
def test_the_second_encoder_is_on_its_way_while_the_first_one_encodes(
    uploads: FakeUploads,
) -> None:
    load(Residency.OFFLOAD_TEXT).encode_prompts(["a koala"])
    assert uploads.log == ["begin", "begin", "wait", "wait"]


@torch.inference_mode()
def test_without_its_weights_an_encoder_cannot_encode(uploads: FakeUploads) -> None:
    offloading = load(Residency.OFFLOAD_TEXT)
    offloading._text._encoders[0][1]._kept.clear()
    with pytest.raises((RuntimeError, NotImplementedError)):
        offloading.encode_prompts(["a koala"])[0].sum().item()


def test_uploads_to_a_cpu_are_copies_all_the_same() -> None:
    uploads = devices.uploads_to(torch.device("cpu"))
    kept = uploads.keep(torch.ones(3))
    there = uploads.begin({"weight": kept}).wait()["weight"]
    assert torch.equal(there, kept)
    assert there.data_ptr() != kept.data_ptr()


def test_uploads_to_cuda_have_a_stream_of_their_own_that_computing_waits_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log: list[str] = []
    monkeypatch.setattr(devices, "_STREAMS", FakeStreams(log))
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: log.append("pin") or tensor)
    monkeypatch.setattr(
        torch.Tensor, "record_stream", lambda _, stream: log.append(f"used in {stream.name}")
    )
    uploads = devices.CudaUploads(torch.device("cpu"))
    kept = uploads.keep(torch.ones(3))
    upload = uploads.begin({"weight": kept})
    # Whatever is computed in between does not wait.
    log.append("computing")
    there = upload.wait()["weight"]
    assert torch.equal(there, kept)
    assert there.data_ptr() != kept.data_ptr()
    assert log == [
        "pin",
        "copy waits for compute",
        "into copy",
        "used in copy",
        "back to compute",
        "mark in copy",
        "computing",
        "compute waits for the mark",
    ]


@pytest.mark.parametrize("residency", [Residency.ALL, Residency.TILE_VAE])
def test_a_vae_that_is_to_decode_by_tiles_decodes_whatever_is_larger_by_tiles(
    pipeline: ResidentPipeline, monkeypatch: pytest.MonkeyPatch, residency: Residency
) -> None:
    monkeypatch.setattr(pipeline, "residency", residency)
    decoder = Decoder(pipeline, Capacity(most=2), pixel_budget=64 * 64)
    engine = Engine(pipeline, max_rows=2)
    engine._decoder = decoder
    ticks = []
    decode = pipeline.decode

    def counted(latents: torch.Tensor) -> torch.Tensor:
        ticks.append(latents.shape[2:])
        return decode(latents)

    monkeypatch.setattr(pipeline, "decode", counted)
    images(run(engine, [sample("a", width=128, height=96)]))
    whole, tile = torch.Size([24, 32]), torch.Size([16, 16])
    assert set(ticks) == ({whole} if residency is Residency.ALL else {tile})


def test_an_8_bit_unet_draws_nearly_the_same_image_from_a_third_of_the_bytes(
    pipeline: ResidentPipeline,
) -> None:
    narrow = load(Residency.FP8_UNET)
    assert narrow._unet.conv_norm_out.weight.dtype == torch.float32
    assert narrow._unet.up_blocks[0].resnets[0].conv1.weight.dtype == torch.float8_e4m3fn
    assert narrow.dtype == torch.float32
    assert narrow.parameter_bytes < 0.35 * pipeline.parameter_bytes
    request = sample("a", width=64, height=64, num_inference_steps=10)
    wide, narrowed = (
        np.asarray(images(run(Engine(each, max_rows=8), [request]))["a"], np.float64)
        for each in (pipeline, narrow)
    )
    # At least 35 dB: here it is 46.
    assert 0 < np.square(wide - narrowed).mean() < 255**2 / 10**3.5


@pytest.mark.parametrize("speed_up", ["fuse_qkv", "compile"])
def test_an_8_bit_unet_excludes_speed_ups_that_replace_its_layers(speed_up: str) -> None:
    with pytest.raises(ModelLoadError, match="KOALA_RESIDENCY fp8_unet excludes KOALA_FUSE_QKV"):
        ResidentPipeline.load(
            DEMO_FOLDER, residency=Residency.FP8_UNET, speed_ups=SpeedUps(**{speed_up: True})
        )


def test_a_model_that_was_unloaded_comes_back_and_draws_the_same_pixels(
    pipeline: ResidentPipeline,
) -> None:
    expected = draw(pipeline)
    for residency in (Residency.ALL, Residency.OFFLOAD_TEXT):
        other = load(residency)
        there = other.parameter_bytes
        tokens = other.count_tokens("a koala")
        other.unload()
        assert (other.is_loaded, other.parameter_bytes) == (False, 0)
        assert other.count_tokens("a koala") == tokens
        other.unload()
        other.reload()
        assert (other.is_loaded, other.parameter_bytes) == (True, there)
        for key, image in draw(other).items():
            assert largest_difference(image, expected[key]) == 0


@pytest.mark.parametrize("residency", [Residency.ALL, Residency.OFFLOAD_TEXT])
@torch.inference_mode()
def test_an_unloaded_model_refuses_to_draw_rather_than_draw_nonsense(residency: Residency) -> None:
    other = load(residency)
    embeds, pooled = other.encode_prompts(["a koala"])
    other.unload()
    latents = torch.zeros(1, 4, 16, 16)
    for call in (
        lambda: other.encode_prompts(["a koala"])[0],
        lambda: other.predict_noise(latents, torch.zeros(1), embeds, pooled, torch.zeros(1, 6)),
        lambda: other.decode(latents),
    ):
        with pytest.raises((RuntimeError, NotImplementedError)):
            call().sum().item()


def test_a_model_that_is_gone_when_it_is_needed_again_says_so(tmp_path: Any) -> None:
    folder = tmp_path / "model"
    folder.symlink_to(DEMO_FOLDER)
    other = ResidentPipeline.load(folder, device="cpu")
    other.unload()
    folder.unlink()
    with pytest.raises(ModelLoadError, match="there is no folder"):
        other.reload()
    assert not other.is_loaded
