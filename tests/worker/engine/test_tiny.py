"""A tiny decoder for previews."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderTiny
from PIL import Image

from koala.catalogue import DEMO_FOLDER, resolve
from koala.settings import Settings
from tests.worker.engine.support import run, sample
from worker.engine import Engine, Preview, ResidentPipeline
from worker.engine.tiny import TinyDecoder
from worker.model import CannotLoad, load


def save(folder: Path, channels: int = 4) -> Path:
    """An untrained decoder of the usual shape, but narrow."""
    torch.manual_seed(0)
    narrow = (8, 8, 8, 8)
    model = AutoencoderTiny(
        encoder_block_out_channels=narrow,
        decoder_block_out_channels=narrow,
        latent_channels=channels,
    )
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> TinyDecoder:
    folder = save(tmp_path_factory.mktemp("tiny"))
    return TinyDecoder.load(folder, 4, torch.device("cpu"), torch.float32)


def preview(engine: Engine) -> Image.Image:
    request = sample("a", width=64, height=64, num_inference_steps=3, preview_steps=frozenset({2}))
    [shown] = [event for event in run(engine, [request]) if isinstance(event, Preview)]
    return shown.image


def test_it_draws_previews_and_the_map_those_that_are_too_dear_for_it(
    pipeline: ResidentPipeline, decoder: TinyDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "tiny_decoder", decoder)
    # The tiny decoder makes 8 pixels of a side of a latent, the map 2.
    engine = Engine(pipeline, max_rows=2)
    assert preview(engine).size == (128, 128)
    engine._previewer._for_decoder.spend(1000.0)
    assert preview(engine).size == (32, 32)


def test_it_decodes_as_diffusers_does(tmp_path: Path, decoder: TinyDecoder) -> None:
    theirs = AutoencoderTiny.from_pretrained(save(tmp_path))
    latents = torch.randn(3, 4, 8, 12, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        torch.testing.assert_close(decoder.decode(latents), theirs.decode(latents).sample)


def test_a_preview_is_never_larger_than_a_message_should_be(decoder: TinyDecoder) -> None:
    with torch.inference_mode():
        assert decoder.decode(torch.zeros(1, 4, 128, 96)).shape == (1, 3, 512, 384)


def empty(folder: Path) -> Path:
    return folder


def absent(folder: Path) -> Path:
    return folder / "nowhere"


def vae(folder: Path) -> Path:
    return Path(shutil.copytree(DEMO_FOLDER / "vae", folder / "vae"))


def of_sixteen_channels(folder: Path) -> Path:
    return save(folder, channels=16)


def truncated(folder: Path) -> Path:
    [weights] = save(folder).glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:1000])
    return folder


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (absent, "there is no folder"),
        (empty, "is not a diffusers folder"),
        (vae, "is no AutoencoderTiny but AutoencoderKL"),
        (of_sixteen_channels, "is for 16 latent channels, the model has 4"),
        (truncated, "cannot be loaded"),
    ],
)
def test_a_wrong_folder_is_one_line_that_names_the_setting(
    tmp_path: Path, make: Callable[[Path], Path], says: str
) -> None:
    settings = Settings(device="cpu", preview_decoder=make(tmp_path))
    with pytest.raises(CannotLoad) as refusal:
        load(settings, resolve("koala-demo"))
    assert str(refusal.value).startswith("KOALA_PREVIEW_DECODER: ")
    assert says in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_worker_loads_it_beside_its_model_and_counts_its_weights(tmp_path: Path) -> None:
    card = resolve("koala-demo")
    plain = load(Settings(device="cpu"), card)
    loaded = load(Settings(device="cpu", preview_decoder=save(tmp_path)), card)
    assert plain.tiny_decoder is None
    assert loaded.tiny_decoder is not None
    extra = loaded.parameter_bytes - plain.parameter_bytes
    assert extra == loaded.tiny_decoder.parameter_bytes > 0
