"""Large images, decoded tile by tile."""

from typing import Any

import pytest
import torch

from tests.worker.engine.support import images, largest_difference, run, sample
from worker.engine import Engine, Finished, Progress, ResidentPipeline
from worker.engine.decoder import Decoder
from worker.engine.tiles import TiledDecode


def latents_of(height: int, width: int) -> torch.Tensor:
    return torch.randn(1, 4, height, width, generator=torch.Generator().manual_seed(0))


@torch.inference_mode()
def tiled(pipeline: ResidentPipeline, latents: torch.Tensor, side: int) -> tuple[torch.Tensor, int]:
    """The pixels, and the number of tiles."""
    decode = TiledDecode(pipeline, latents, side)
    tiles = 0
    while True:
        pixels, _ = decode.advance()
        tiles += 1
        if pixels is not None:
            return pixels, tiles


def nine_by_nine(latents: torch.Tensor) -> torch.Tensor:
    """A decoder that sees four latents far: smoothed latents, four pixels each."""
    smooth = torch.nn.functional.avg_pool2d(latents[:, :3], 9, 1, 4, count_include_pad=False)
    return torch.nn.functional.interpolate(smooth, scale_factor=4)


@pytest.mark.parametrize(("height", "width"), [(16, 40), (40, 16), (33, 47), (16, 16)])
def test_every_pixel_is_covered_and_tiles_fade_into_each_other(
    height: int, width: int, pipeline: ResidentPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "decode", nine_by_nine)
    latents = latents_of(height, width)
    pixels, tiles = tiled(pipeline, latents, 16)
    whole = nine_by_nine(latents)
    assert pixels.shape == whole.shape
    assert (tiles == 1) == (max(height, width) <= 16)
    # A tile errs only within four latents of its edge, where its neighbour counts for more.
    error = (pixels - whole).abs()
    assert error.max() < 0.25 * whole.std() + 0.5 * whole.abs().max()
    assert error.mean() < 0.2 * whole.std()
    assert (error.amax(dim=(0, 1)) < 1e-5).float().mean() > 0.4


def test_a_decoder_without_foresight_gives_the_same_by_tiles_as_whole(
    pipeline: ResidentPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pointwise(latents: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.interpolate(latents[:, :3], scale_factor=4)

    monkeypatch.setattr(pipeline, "decode", pointwise)
    latents = latents_of(50, 37)
    pixels, tiles = tiled(pipeline, latents, 16)
    torch.testing.assert_close(pixels, pointwise(latents))
    assert tiles == 4 * 3


def test_the_real_decoder_gives_nearly_the_same_by_tiles_as_whole(
    pipeline: ResidentPipeline,
) -> None:
    request = sample("a", width=128, height=128, num_inference_steps=4)
    whole = images(run(Engine(pipeline, max_rows=2), [request]))["a"]
    engine = Engine(pipeline, max_rows=2)
    # Tiles of 16 latents: nine of them.
    engine._decoder = Decoder(
        pipeline, engine.capacity, pixel_budget=64 * 64, largest_whole=64 * 64
    )
    by_tiles = images(run(engine, [request]))["a"]
    assert by_tiles.size == (128, 128)
    assert largest_difference(by_tiles, whole) < 60


def test_others_go_on_between_two_tiles(pipeline: ResidentPipeline) -> None:
    engine = Engine(pipeline, max_rows=8)
    engine._decoder = Decoder(
        pipeline, engine.capacity, pixel_budget=64 * 64, largest_whole=64 * 64
    )
    engine.add(sample("large", width=128, height=128, num_inference_steps=1))
    engine.add(sample("small", num_inference_steps=40))
    steps_between: list[Any] = []
    while not engine.is_idle:
        events = engine.step()
        assert engine.last_tick.decoded <= 1
        if "large" in engine._entries and engine.last_tick.decoded:
            steps_between += [e for e in events if isinstance(e, Progress) and e.key == "small"]
    assert len(steps_between) >= 7


def test_an_image_can_be_removed_between_two_tiles(pipeline: ResidentPipeline) -> None:
    engine = Engine(pipeline, max_rows=8)
    engine._decoder = Decoder(
        pipeline, engine.capacity, pixel_budget=64 * 64, largest_whole=64 * 64
    )
    engine.add(sample("large", width=128, height=128, num_inference_steps=1))
    while not engine.last_tick.decoded:
        engine.step()
    engine.remove("large")
    assert engine.is_idle
    [finished] = [e for e in run(engine, [sample("next")]) if isinstance(e, Finished)]
    assert finished.key == "next"
    assert finished.image.size == (32, 32)
