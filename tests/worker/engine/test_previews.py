"""Previews: what a sample would be if it were finished now, and what that costs others."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from distill.fit_preview import fit
from koala.catalogue import DEMO_FOLDER
from koala.schedulers import SCHEDULERS
from tests.worker.engine.support import images, run, sample
from worker.engine import Engine, EngineEvent, Preview, ResidentPipeline
from worker.engine.conditioning import PromptCache
from worker.engine.pace import Pace
from worker.engine.previews import Previewer
from worker.engine.projection import FILE_NAME, Projection
from worker.engine.sample import Sample


def distance(first: Image.Image, second: Image.Image) -> float:
    """Mean difference of two images' pixels, of 255; the second is scaled to the first."""
    second = second.resize(first.size, Image.Resampling.BOX)
    pixels = [np.asarray(image, dtype=np.float32) for image in (first, second)]
    return float(np.abs(pixels[0] - pixels[1]).mean())


def shown(events: list[EngineEvent]) -> list[Preview]:
    return [event for event in events if isinstance(event, Preview)]


def test_previews_come_after_the_steps_asked_for_and_sharpen(engine: Engine) -> None:
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
def test_each_schedulers_last_preview_is_nearly_the_image(engine: Engine, scheduler: str) -> None:
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


def test_the_map_from_latents_is_learned_from_what_is_drawn(
    pipeline: ResidentPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "projection", pipeline.projection)
    projection = fit(pipeline, images=24, steps=10)
    assert projection.is_known

    engine = Engine(pipeline, max_rows=8)
    # Too dear for the decoder from now on.
    engine._previewer._for_decoder.spend(1000.0)
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


def test_the_demo_model_brings_its_map_along(pipeline: ResidentPipeline) -> None:
    assert Projection.load(DEMO_FOLDER, 4).is_known


def test_a_worker_that_knows_no_map_and_has_no_time_shows_nothing(
    pipeline: ResidentPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "projection", Projection())
    engine = Engine(pipeline, max_rows=8)
    engine._previewer._for_decoder.spend(1000.0)
    events = run(engine, [sample("a", num_inference_steps=4, preview_steps=frozenset({2}))])
    assert shown(events) == []
    assert "a" in images(events)


@pytest.fixture
def decoded(pipeline: ResidentPipeline, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Images of each call of the decoder, which takes a second for each by a clock of its own."""
    calls: list[int] = []
    now = 0.0

    def decode(latents: torch.Tensor) -> torch.Tensor:
        nonlocal now
        calls.append(len(latents))
        now += len(latents)
        return latents[:, :3]

    monkeypatch.setattr("worker.engine.previews.time.perf_counter", lambda: now)
    monkeypatch.setattr(pipeline, "decode", decode)
    return calls


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
    pipeline: ResidentPipeline, decoded: list[int]
) -> None:
    previewer = Previewer(pipeline)
    drawn = predicted(pipeline)
    # Half a second was saved up, and a first call is allowed to take longer.
    previewer.draw(drawn)
    assert decoded == [1]
    previewer.earn(60.0)
    previewer.draw(drawn)
    assert decoded == [1]
    previewer.earn(20.0)
    previewer.draw(drawn)
    assert decoded == [1, 1]
    # No more can be saved up than half a second, and by now it is known to take longer.
    previewer.earn(10_000.0)
    previewer.draw(drawn)
    assert decoded == [1, 1]


def test_previews_that_take_long_to_show_are_drawn_less_often(engine: Engine) -> None:
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
    pipeline: ResidentPipeline, decoded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn, previewer = predicted(pipeline), Previewer(pipeline)
    previewer._for_decoder.spend(1000.0)
    draw = pipeline.projection.draw
    # By the clock of the decoder above, the map takes a second too.
    monkeypatch.setattr(pipeline.projection, "draw", lambda it: (pipeline.decode(it), draw(it))[1])
    assert len(previewer.draw(drawn)) == 1
    assert previewer.draw(drawn) == []
    previewer.earn(121.0)
    assert len(previewer.draw(drawn)) == 1
    assert decoded == [1, 1]


def test_one_slow_preview_does_not_look_like_a_slow_device(
    pipeline: ResidentPipeline, decoded: list[int]
) -> None:
    previewer = Previewer(pipeline)
    previewer._vae_pace = Pace(0.01 / 64, is_warm=True)
    drawn = predicted(pipeline)
    previewer.draw(drawn)
    previewer.earn(10_000.0)
    previewer.draw(drawn)
    assert decoded == [1, 1]


def test_without_a_map_the_decoder_shows_as_many_as_it_may(
    pipeline: ResidentPipeline, decoded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "projection", Projection())
    previewer = Previewer(pipeline)
    previewer._vae_pace = Pace(0.2 / 64, is_warm=True)
    drawn = predicted(pipeline, 3)
    assert [shown for shown, _ in previewer.draw(drawn)] == drawn[:2]
    assert decoded == [2]


def test_where_the_decoder_fails_the_map_shows_what_there_is(
    pipeline: ResidentPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = 0

    def decode(latents: torch.Tensor) -> torch.Tensor:
        nonlocal tries
        tries += 1
        raise torch.OutOfMemoryError("no")

    monkeypatch.setattr(pipeline, "decode", decode)
    previewer = Previewer(pipeline)
    drawn = predicted(pipeline)
    for _ in range(3):
        assert [shown for shown, _ in previewer.draw(drawn)] == drawn
    assert tries == 1
    previewer.earn(1.0)
    previewer.draw(drawn)
    assert tries == 2


def test_a_sample_of_no_numbers_spoils_no_other_preview(pipeline: ResidentPipeline) -> None:
    spoilt, sound = predicted(pipeline, 2)
    spoilt.predicted = torch.full_like(spoilt.latents, torch.nan)
    assert [shown for shown, _ in Previewer(pipeline).draw([spoilt, sound])] == [sound]


def test_a_preview_that_cannot_be_drawn_costs_nothing_else(
    engine: Engine, pipeline: ResidentPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = pipeline.decode

    def fragile(latents: torch.Tensor) -> torch.Tensor:
        if engine.last_tick.decoded == 0 and engine._batcher.rows:
            raise RuntimeError("no")
        return real(latents)

    monkeypatch.setattr(pipeline, "decode", fragile)
    events = run(engine, [sample("a", num_inference_steps=4, preview_steps=frozenset({1, 2}))])
    assert "a" in images(events)


def test_a_map_can_be_kept_beside_the_checkpoint(tmp_path: Path) -> None:
    learned = Projection()
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    latents = latents.repeat_interleave(4, 0)
    truth = torch.tensor([[0.2, 0.1, 0], [0, 0.3, 0], [0, 0, 0.4], [0.1, 0, 0.1]])
    pixels = torch.einsum("nchw,cr->nrhw", latents, truth) + 0.05
    learned.observe(latents, pixels.repeat_interleave(4, 2).repeat_interleave(4, 3))
    learned.save(tmp_path)

    loaded = Projection.load(tmp_path, 4)

    pixels = pixels.repeat_interleave(2, 2).repeat_interleave(2, 3)
    expected = pixels.mul(127.5).add(127.5).clamp(0, 255).round().permute(0, 2, 3, 1).numpy()
    for image, array in zip(loaded.draw(latents), expected, strict=True):
        assert np.abs(np.asarray(image, dtype=np.float32) - array).max() <= 1
    assert json.loads((tmp_path / FILE_NAME).read_text()).keys() == {"factors"}


@pytest.mark.parametrize("text", ["", "{}", '{"factors": 3}', '{"factors": [[1, 2, 3]]}'])
def test_a_malformed_map_is_refused_by_name(tmp_path: Path, text: str) -> None:
    (tmp_path / FILE_NAME).write_text(text)
    with pytest.raises(ValueError, match=FILE_NAME):
        Projection.load(tmp_path, 4)


def test_a_checkpoint_without_a_map_learns_one(tmp_path: Path) -> None:
    assert not Projection.load(tmp_path, 4).is_known
    with pytest.raises(RuntimeError):
        Projection().draw(torch.zeros(1, 4, 2, 2))
