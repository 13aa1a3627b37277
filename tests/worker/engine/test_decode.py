"""How much is decoded per tick."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from tests.worker.engine.support import images, sample
from worker.engine import Engine, ResidentPipeline
from worker.engine.capacity import Capacity
from worker.engine.conditioning import PromptCache
from worker.engine.decoder import Decoder
from worker.engine.sample import Sample


def denoised(pipeline: ResidentPipeline, key: str, width: int, height: int) -> Sample:
    """A sample that could be decoded."""
    request = sample(key, width=width, height=height, guidance_scale=1.0)
    with torch.inference_mode():
        positive, negative = PromptCache(pipeline).conditioning(request)
        return Sample(request, pipeline, positive, negative)


@torch.inference_mode()
def drawn(decoder: Decoder) -> list[str]:
    """The names of the samples that one tick decodes."""
    tick = decoder.tick()
    assert tick.images == len(tick.drawn)
    return [sample.key for sample, image in tick.drawn if image.size == sample.size]


def test_a_chunk_holds_images_of_one_size_within_the_budget(pipeline: ResidentPipeline) -> None:
    decoder = Decoder(pipeline, Capacity(most=8), pixel_budget=2 * 32 * 32)
    for key, width in [("a", 32), ("wide", 64), ("b", 32), ("c", 32)]:
        decoder.add(denoised(pipeline, key, width, 32))
    assert drawn(decoder) == ["a", "b"]
    assert drawn(decoder) == ["wide"]
    assert drawn(decoder) == ["c"]
    assert drawn(decoder) == []


def test_an_image_beyond_the_budget_is_decoded_alone(pipeline: ResidentPipeline) -> None:
    decoder = Decoder(pipeline, Capacity(most=8), pixel_budget=32 * 32)
    for key in ("a", "b"):
        decoder.add(denoised(pipeline, key, 64, 64))
    assert drawn(decoder) == ["a"]
    assert drawn(decoder) == ["b"]


def test_small_images_are_decoded_together(pipeline: ResidentPipeline) -> None:
    engine = Engine(pipeline, max_rows=8)
    for i in range(8):
        engine.add(sample(f"{i}", num_inference_steps=1, guidance_scale=1.0, seed=i))
    assert len(images(engine.step())) == 8
    assert engine.last_tick.decoded == 8


def test_decoding_goes_on_beside_denoising_and_holds_back_admission_when_late(
    pipeline: ResidentPipeline,
) -> None:
    engine = Engine(pipeline, max_rows=2)
    engine._decoder = Decoder(pipeline, engine.capacity, pixel_budget=1)
    for i in range(12):
        engine.add(sample(f"{i}", num_inference_steps=1, guidance_scale=1.0, seed=i))
    finished = 0
    for _ in range(12):
        finished += len(images(engine.step()))
        assert engine.last_tick.decoded == 1
        assert engine.in_flight <= 2 * engine.max_rows
    assert finished == 12
    assert engine.is_idle


@pytest.fixture
def vae(pipeline: ResidentPipeline) -> Iterator[Any]:
    """The VAE, whose settings a test may change."""
    vae = pipeline._vae
    before = {name: value for name, value in vae.config.items() if not name.startswith("_")}
    yield vae
    vae.register_to_config(**before)


@pytest.mark.parametrize(
    ("latents_mean", "latents_std"), [(None, None), ([0.1, -0.2, 0.3, 0.0], [0.5, 1.5, 1.0, 2.0])]
)
def test_the_scaling_of_latents_is_undone_before_decoding(
    latents_mean: list[float] | None,
    latents_std: list[float] | None,
    pipeline: ResidentPipeline,
    vae: Any,
) -> None:
    vae.register_to_config(latents_mean=latents_mean, latents_std=latents_std, scaling_factor=0.5)
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    shift = torch.tensor(latents_mean or [0.0] * 4).view(1, 4, 1, 1)
    scale = torch.tensor(latents_std or [1.0] * 4).view(1, 4, 1, 1)
    with torch.inference_mode():
        expected = vae.decode(latents * scale / 0.5 + shift, return_dict=False)[0]
        torch.testing.assert_close(pipeline.decode(latents), expected)
