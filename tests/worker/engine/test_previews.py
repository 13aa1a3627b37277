"""Previews: what a sample would be if it were finished now, and what that costs others."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image
from structlog.testing import capture_logs
from torch.nn.functional import interpolate

from distill.fit_preview import Fit, fit
from koala.catalogue import DEMO_FOLDER, resolve
from koala.schedulers import SCHEDULERS
from koala.settings import Settings
from tests.worker.engine.support import images, run, sample
from worker.engine import Engine, EngineEvent, Failed, Preview, ResidentPipeline
from worker.engine.conditioning import PromptCache
from worker.engine.pace import Pace
from worker.engine.previews import Previewer
from worker.engine.projection import FILE_NAME, Projection
from worker.engine.sample import Sample
from worker.model import load

DEMO_VAE = SimpleNamespace(latent_channels=4, scaling_factor=0.928, latents_mean=None)


class TinyStandIn:
    """In place of TAESD: the VAE itself, with which a preview is as sharp as the image.

    Args:
        pipeline: The model.
    """

    def __init__(self, pipeline: ResidentPipeline) -> None:
        self.pipeline = pipeline
        self.calls: list[int] = []
        # How long an image takes, by a clock that only this moves.
        self.seconds = 0.0
        self.now = 0.0
        self.parameter_bytes = 0

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        self.calls.append(len(latents))
        self.now += len(latents) * self.seconds
        return self.pipeline.decode(latents)


@pytest.fixture
def tiny(pipeline: ResidentPipeline, monkeypatch: pytest.MonkeyPatch) -> TinyStandIn:
    """A tiny decoder in the pipeline, and the clock by which previews are paid for."""
    decoder = TinyStandIn(pipeline)
    monkeypatch.setattr(pipeline, "tiny_decoder", decoder)
    monkeypatch.setattr("worker.engine.previews.time.perf_counter", lambda: decoder.now)
    return decoder


def distance(first: Image.Image, second: Image.Image) -> float:
    """Mean difference of two images' pixels, of 255; the second is scaled to the first."""
    second = second.resize(first.size, Image.Resampling.BOX)
    pixels = [np.asarray(image, dtype=np.float32) for image in (first, second)]
    return float(np.abs(pixels[0] - pixels[1]).mean())


def shown(events: list[EngineEvent]) -> list[Preview]:
    return [event for event in events if isinstance(event, Preview)]


def test_previews_come_after_the_steps_asked_for_and_sharpen(
    engine: Engine, tiny: TinyStandIn
) -> None:
    request = sample(
        "a", width=64, height=64, num_inference_steps=12, preview_steps=frozenset({2, 6, 11})
    )
    events = run(engine, [request, sample("b", num_inference_steps=12)])

    previews = shown(events)
    assert [(event.key, event.step) for event in previews] == [("a", 2), ("a", 6), ("a", 11)]
    final = images(events)["a"]
    distances = [distance(event.image, final) for event in previews]
    assert distances == sorted(distances, reverse=True)
    assert distances[-1] < 3


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_each_schedulers_last_preview_is_nearly_the_image(
    engine: Engine, tiny: TinyStandIn, scheduler: str
) -> None:
    request = sample(
        "a",
        width=64,
        height=64,
        scheduler=scheduler,
        num_inference_steps=20,
        preview_steps=frozenset({19}),
    )
    events = run(engine, [request])

    [preview] = shown(events)
    assert distance(preview.image, images(events)["a"]) < 20


@pytest.mark.parametrize("scheduler", ["euler", "euler_a", "ddim"])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_the_prediction_is_diffusers_own(
    pipeline: ResidentPipeline, scheduler: str, prediction_type: str
) -> None:
    request = sample(
        "a", scheduler=scheduler, num_inference_steps=5, preview_steps=frozenset({1, 2, 3, 4})
    )
    positive, negative = PromptCache(pipeline).conditioning(request)
    drawn = Sample(request, pipeline, positive, negative)
    drawn._scheduler.register_to_config(prediction_type=prediction_type)
    twin = Sample(request, pipeline, positive, negative)._scheduler
    twin.register_to_config(prediction_type=prediction_type)
    generator = torch.Generator().manual_seed(3)
    for _ in range(4):
        output = torch.randn(drawn.latents.shape, generator=generator)
        timestep, latents = drawn.timestep, drawn.latents
        twin.scale_model_input(latents, timestep)
        drawn.advance(output)
        theirs = twin.step(output, timestep, latents).pred_original_sample
        assert drawn.predicted is not None
        torch.testing.assert_close(drawn.predicted, theirs, rtol=1e-3, atol=1e-3)


def test_an_image_is_the_same_with_previews_as_without(engine: Engine) -> None:
    plain = sample("plain", num_inference_steps=5)
    watched = sample("watched", num_inference_steps=5, preview_steps=frozenset({1, 2, 3, 4}))
    events = run(engine, [plain, watched])
    drawn = images(events)
    assert drawn["plain"].tobytes() == drawn["watched"].tobytes()


@pytest.mark.parametrize("fitted", [False, True])
def test_a_map_shows_which_image_it_will_be(
    pipeline: ResidentPipeline, monkeypatch: pytest.MonkeyPatch, fitted: bool
) -> None:
    if fitted:
        monkeypatch.setattr(pipeline, "projection", fit(pipeline, images=24, steps=10))
    engine = Engine(pipeline, max_rows=8)
    colours = ("red", "blue")
    requests = [
        sample(
            colour,
            prompt=f"a panda on a {colour} background",
            width=64,
            height=64,
            num_inference_steps=10,
            preview_steps=frozenset({9}),
        )
        for colour in colours
    ]
    events = run(engine, requests)
    shown = {event.key: event.image for event in events if isinstance(event, Preview)}
    drawn = images(events)
    assert shown["red"].size == (32, 32)
    for colour, other in (colours, colours[::-1]):
        assert distance(shown[colour], drawn[colour]) < distance(shown[colour], drawn[other])
        assert distance(shown[colour], drawn[colour]) < 40


def test_what_is_drawn_changes_no_map(engine: Engine, pipeline: ResidentPipeline) -> None:
    assert pipeline.projection is not None
    before = pipeline.projection.factors.clone()
    images(run(engine, [sample("a"), sample("b", seed=2)]))
    assert torch.equal(pipeline.projection.factors, before)


def test_sdxls_vae_and_that_of_playground_have_published_maps() -> None:
    latents = torch.randn(2, 4, 5, 7, generator=torch.Generator().manual_seed(1))
    for scaling_factor, mean in ((0.13025, None), (0.5, [-1.6574, 1.886, -1.383, 2.5155])):
        config = AutoencoderKL(scaling_factor=scaling_factor, latents_mean=mean).config
        projection = Projection.of(None, config)
        assert projection is not None
        # The first channel is brightness, in both.
        dark, bright = (
            projection.draw(torch.tensor([v, 0, 0, 0.0]).view(1, 4, 1, 1)) for v in (-2, 2)
        )
        assert max(dark[0].getpixel((0, 0))) < 80 < 175 < min(bright[0].getpixel((0, 0)))
        # From one pixel for each latent to four, as bilinear interpolation does it.
        one = [
            projection.draw(each.view(1, 4, 1, 1))
            for each in latents.permute(0, 2, 3, 1).reshape(-1, 4)
        ]
        coarse = torch.tensor(
            np.stack([np.asarray(image)[0, 0] for [image] in one]).reshape(2, 5, 7, 3)
        )
        expected = interpolate(
            coarse.permute(0, 3, 1, 2).float(), scale_factor=2, mode="bilinear", align_corners=False
        )
        for image, array in zip(projection.draw(latents), expected, strict=True):
            difference = np.abs(np.asarray(image, np.float32) - array.permute(1, 2, 0).numpy())
            # Where a channel is clipped before and not after, they differ.
            assert np.median(difference) <= 1


@pytest.mark.parametrize(
    ("scaling_factor", "mean", "channels"),
    [(0.18215, None, 4), (0.13025, [0.0] * 4, 4), (0.5, None, 4), (0.13025, None, 16)],
)
def test_a_vae_that_nobody_knows_has_no_map(
    scaling_factor: float, mean: list[float] | None, channels: int
) -> None:
    config = SimpleNamespace(
        latent_channels=channels, scaling_factor=scaling_factor, latents_mean=mean
    )
    assert Projection.of(None, config) is None


def test_a_model_without_map_and_decoder_shows_nothing_and_the_log_says_so_at_its_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Projection, "of", lambda *_: None)
    with capture_logs() as lines:
        loaded = load(Settings(device="cpu"), resolve("koala-demo"))
    assert [line["model"] for line in lines if "no previews" in line["event"]] == ["koala-demo"]
    engine = Engine(loaded, max_rows=8)
    events = run(engine, [sample("a", num_inference_steps=4, preview_steps=frozenset({2}))])
    assert shown(events) == []
    assert "a" in images(events)


@pytest.fixture
def slow(tiny: TinyStandIn) -> TinyStandIn:
    """A tiny decoder that takes a second for each image."""
    tiny.seconds = 1.0
    return tiny


def predicted(pipeline: ResidentPipeline, count: int = 1) -> list[Sample]:
    """Samples in the middle of their way."""
    drawn = []
    for i in range(count):
        request = sample(f"a{i}", num_inference_steps=4, preview_steps=frozenset({2}))
        positive, negative = PromptCache(pipeline).conditioning(request)
        drawn.append(Sample(request, pipeline, positive, negative))
        drawn[-1].predicted = drawn[-1].latents
    return drawn


def test_previews_by_the_decoder_are_paid_for_by_a_share_of_the_engines_time(
    pipeline: ResidentPipeline, slow: TinyStandIn
) -> None:
    previewer = Previewer(pipeline)
    drawn = predicted(pipeline)
    # Half a second was saved up, and a first call is allowed to take longer.
    previewer.draw(drawn)
    assert slow.calls == [1]
    previewer.earn(60.0)
    previewer.draw(drawn)
    assert slow.calls == [1]
    previewer.earn(20.0)
    previewer.draw(drawn)
    assert slow.calls == [1, 1]
    # No more can be saved up than half a second, and by now it is known to take longer.
    previewer.earn(10_000.0)
    previewer.draw(drawn)
    assert slow.calls == [1, 1]


def test_previews_that_take_long_to_show_are_drawn_less_often(
    engine: Engine, tiny: TinyStandIn
) -> None:
    watched = sample("a", num_inference_steps=12, preview_steps=frozenset(range(1, 12)))
    assert len(shown(run(engine, [watched]))) == 11
    engine.charge_previews(1000.0)
    assert shown(run(engine, [watched])) == []
    assert engine.last_tick.previews_dropped == 0
    engine.add(sample("b", num_inference_steps=12, preview_steps=frozenset({1})))
    engine.step()
    assert engine.last_tick.previews_dropped == 1
    engine.remove("b")
    # Their share of the engine's time pays off what they took.
    engine._previewer.earn(140_000.0)
    [first, *_] = shown(run(engine, [watched]))
    assert first.step == 1


def test_maps_cost_what_they_take(
    pipeline: ResidentPipeline, slow: TinyStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn, previewer = predicted(pipeline), Previewer(pipeline)
    previewer._for_decoder.spend(1000.0)
    assert pipeline.projection is not None
    draw = pipeline.projection.draw
    # By the clock of the decoder above, the map takes a second too.
    monkeypatch.setattr(pipeline.projection, "draw", lambda it: (slow.decode(it), draw(it))[1])
    assert len(previewer.draw(drawn)) == 1
    assert previewer.draw(drawn) == []
    previewer.earn(121.0)
    assert len(previewer.draw(drawn)) == 1
    assert slow.calls == [1, 1]


def test_one_slow_preview_does_not_look_like_a_slow_device(
    pipeline: ResidentPipeline, slow: TinyStandIn
) -> None:
    previewer = Previewer(pipeline)
    previewer._pace = Pace(0.01 / 64, is_warm=True)
    drawn = predicted(pipeline)
    previewer.draw(drawn)
    previewer.earn(10_000.0)
    previewer.draw(drawn)
    assert slow.calls == [1, 1]


def test_without_a_map_the_decoder_shows_as_many_as_it_may(
    pipeline: ResidentPipeline, slow: TinyStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "projection", None)
    previewer = Previewer(pipeline)
    previewer._pace = Pace(0.2 / 64, is_warm=True)
    drawn = predicted(pipeline, 3)
    assert [shown for shown, _ in previewer.draw(drawn)] == drawn[:2]
    assert slow.calls == [2]


def no_memory(*_: Any, **__: Any) -> Any:
    raise torch.OutOfMemoryError("no")


def broken(*_: Any, **__: Any) -> Any:
    raise RuntimeError("no")


def test_where_the_decoder_fails_the_map_shows_what_there_is(
    pipeline: ResidentPipeline, tiny: TinyStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = 0

    def decode(latents: torch.Tensor) -> torch.Tensor:
        nonlocal tries
        tries += 1
        return no_memory()

    monkeypatch.setattr(tiny, "decode", decode)
    previewer = Previewer(pipeline)
    drawn = predicted(pipeline)
    with capture_logs() as lines:
        for _ in range(3):
            assert [shown for shown, _ in previewer.draw(drawn)] == drawn
            assert previewer.failed == 0
        assert tries == 1
        previewer.earn(1.0)
        previewer.draw(drawn)
    assert tries == 2
    # Both are told of in one line.
    assert [line["event"] for line in lines] == [COMPLAINT]


COMPLAINT = "a preview cannot be drawn; the image itself goes on"


def test_a_sample_of_no_numbers_spoils_no_other_preview(
    pipeline: ResidentPipeline, tiny: TinyStandIn
) -> None:
    spoilt, sound = predicted(pipeline, 2)
    spoilt.predicted = torch.full_like(spoilt.latents, torch.nan)
    previewer = Previewer(pipeline)
    assert [shown for shown, _ in previewer.draw([spoilt, sound])] == [sound]
    assert previewer.failed == 1


def test_a_map_for_other_latents_beside_the_checkpoint_is_refused(tmp_path: Path) -> None:
    Projection(torch.zeros(37, 12)).save(tmp_path)
    assert Projection.of(tmp_path, DEMO_VAE) is not None
    sixteen = SimpleNamespace(latent_channels=16, scaling_factor=0.928, latents_mean=None)
    with pytest.raises(ValueError, match="16 channels"):
        Projection.of(tmp_path, sixteen)


@pytest.mark.parametrize("error", [broken, no_memory])
@pytest.mark.parametrize("place", ["prediction", "decoder and map", "map"])
def test_an_error_in_a_preview_changes_no_pixel_of_the_image_and_is_logged_once(
    engine: Engine,
    pipeline: ResidentPipeline,
    tiny: TinyStandIn,
    monkeypatch: pytest.MonkeyPatch,
    error: Callable[..., Any],
    place: str,
) -> None:
    plain = [sample(key, num_inference_steps=5, seed=seed) for seed, key in enumerate("ab")]
    watched = [
        sample(key, num_inference_steps=5, seed=seed, preview_steps=frozenset({1, 2, 3, 4}))
        for seed, key in enumerate("ab")
    ]
    expected = images(run(engine, plain))
    if place == "prediction":
        monkeypatch.setattr(Sample, "_predict", error)
    else:
        monkeypatch.setattr(pipeline.projection, "draw", error)
    if place == "decoder and map":
        monkeypatch.setattr(tiny, "decode", error)
    elif place == "map":
        monkeypatch.setattr(pipeline, "tiny_decoder", None)
    for request in watched:
        engine.add(request)
    events, failed = [], 0
    with capture_logs() as lines:
        while not engine.is_idle:
            events += engine.step()
            failed += engine.last_tick.previews_failed
            assert engine.last_tick.out_of_memory == engine.last_tick.previews_dropped == 0
    drawn = images(events)
    assert {key: image.tobytes() for key, image in drawn.items()} == {
        key: image.tobytes() for key, image in expected.items()
    }
    assert shown(events) == []
    assert failed == 8
    assert [line["event"] for line in lines] == [COMPLAINT]


def test_a_scheduler_that_tells_no_prediction_costs_previews_only(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As diffusers' EDM schedulers, which have none.
    new = ResidentPipeline.new_scheduler

    def without(self: ResidentPipeline, *arguments: Any) -> Any:
        scheduler = new(self, *arguments)
        del scheduler.alphas_cumprod
        return scheduler

    monkeypatch.setattr(ResidentPipeline, "new_scheduler", without)
    events = run(engine, [sample("a", num_inference_steps=4, preview_steps=frozenset({2}))])
    assert not [event for event in events if isinstance(event, Failed)]
    assert "a" in images(events) and shown(events) == []


def test_a_map_can_be_kept_beside_the_checkpoint(tmp_path: Path) -> None:
    learned = Fit()
    with pytest.raises(RuntimeError):
        learned.solve()
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    latents = latents.repeat_interleave(4, 0)
    truth = torch.tensor([[0.2, 0.1, 0], [0, 0.3, 0], [0, 0, 0.4], [0.1, 0, 0.1]])
    pixels = torch.einsum("nchw,cr->nrhw", latents, truth) + 0.05
    learned.observe(latents, pixels.repeat_interleave(4, 2).repeat_interleave(4, 3))
    learned.solve().save(tmp_path)

    loaded = Projection.of(tmp_path, DEMO_VAE)

    assert loaded is not None
    pixels = pixels.repeat_interleave(2, 2).repeat_interleave(2, 3)
    expected = pixels.mul(127.5).add(127.5).clamp(0, 255).round().permute(0, 2, 3, 1).numpy()
    for image, array in zip(loaded.draw(latents), expected, strict=True):
        assert np.abs(np.asarray(image, dtype=np.float32) - array).max() <= 1
    assert json.loads((tmp_path / FILE_NAME).read_text()).keys() == {"factors"}


@pytest.mark.parametrize("text", ["", "{}", '{"factors": 3}', '{"factors": [[1, 2, 3]]}'])
def test_a_malformed_map_is_refused_by_name(tmp_path: Path, text: str) -> None:
    (tmp_path / FILE_NAME).write_text(text)
    with pytest.raises(ValueError, match=FILE_NAME):
        Projection.of(tmp_path, DEMO_VAE)


def test_the_demo_model_brings_its_map_along() -> None:
    assert Projection.of(DEMO_FOLDER, DEMO_VAE) is not None
    assert Projection.of(None, DEMO_VAE) is None
