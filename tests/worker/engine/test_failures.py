"""What goes wrong in one sample stays with that sample."""

from typing import Any

import pytest
import torch

from tests.worker.engine.support import images, largest_difference, run, sample
from worker.engine import Engine, Failed, Finished, Progress, ResidentPipeline
from worker.engine.sample import NonFiniteError, Sample

MATE = sample("mate", num_inference_steps=4)


@pytest.fixture(scope="module")
def mate_alone(pipeline: ResidentPipeline) -> Any:
    """The mate's image, drawn without company."""
    return images(run(Engine(pipeline, max_rows=8), [MATE]))["mate"]


def failures(events: list[Any]) -> dict[str, Exception]:
    """The errors among ``events``, by key."""
    return {event.key: event.error for event in events if isinstance(event, Failed)}


def check_that_the_mate_is_unharmed(events: list[Any], mate_alone: Any) -> None:
    (finished,) = [event for event in events if isinstance(event, Finished)]
    assert finished.key == "mate"
    assert largest_difference(finished.image, mate_alone) <= 1


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
@pytest.mark.parametrize("at_step", [1, 3])
def test_latents_that_are_no_numbers_fail_their_sample_only(
    poison: float,
    at_step: int,
    engine: Engine,
    mate_alone: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    advance = Sample.advance

    def poisoned(self: Sample, noise_pred: torch.Tensor) -> None:
        advance(self, noise_pred)
        if self.key == "bad" and self.steps_done == at_step:
            self.latents[0, 0, 0, 0] = poison

    monkeypatch.setattr(Sample, "advance", poisoned)
    events = run(engine, [sample("bad", num_inference_steps=3), MATE])
    assert isinstance(failures(events)["bad"], NonFiniteError)
    steps = [event.step for event in events if isinstance(event, Progress) and event.key == "bad"]
    assert steps == list(range(1, at_step))
    check_that_the_mate_is_unharmed(events, mate_alone)


@pytest.mark.parametrize("method", ["scale_model_input", "step"])
def test_an_exception_of_a_scheduler_fails_its_sample_only(
    method: str, engine: Engine, mate_alone: Any
) -> None:
    def explode(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("this scheduler is broken")

    engine.add(sample("bad", num_inference_steps=4, guidance_scale=1.0))
    engine.add(MATE)
    events = engine.step()
    setattr(engine._entries["bad"].sample._scheduler, method, explode)
    events += run(engine)
    assert str(failures(events)["bad"]) == "this scheduler is broken"
    check_that_the_mate_is_unharmed(events, mate_alone)


def test_a_prompt_that_cannot_be_encoded_fails_its_sample_only(
    engine: Engine, mate_alone: Any
) -> None:
    lone_surrogate = "a \ud800 koala"
    events = run(engine, [sample("bad", prompt=lone_surrogate), MATE])
    assert list(failures(events)) == ["bad"]
    check_that_the_mate_is_unharmed(events, mate_alone)


def test_a_failing_unet_call_fails_its_group_and_leaves_the_engine_usable(
    engine: Engine,
    pipeline: ResidentPipeline,
    mate_alone: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    predict_noise = pipeline.predict_noise

    def only_square(latents: torch.Tensor, *args: torch.Tensor) -> torch.Tensor:
        if latents.shape[2] != latents.shape[3]:
            raise RuntimeError("out of memory")
        return predict_noise(latents, *args)

    monkeypatch.setattr(pipeline, "predict_noise", only_square)
    wide = [sample("wide", width=64), sample("wide too", width=64, guidance_scale=1.0)]
    events = run(engine, [*wide, MATE])
    assert sorted(failures(events)) == ["wide", "wide too"]
    check_that_the_mate_is_unharmed(events, mate_alone)
    monkeypatch.undo()
    assert sorted(images(run(engine, wide))) == ["wide", "wide too"]


def test_a_bad_decode_fails_its_sample_only(
    engine: Engine,
    pipeline: ResidentPipeline,
    mate_alone: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    decode = pipeline.decode

    def spoil_the_first_of_two(latents: torch.Tensor) -> torch.Tensor:
        pixels = decode(latents)
        if len(latents) == 2:
            pixels[0] = float("nan")
        return pixels

    monkeypatch.setattr(pipeline, "decode", spoil_the_first_of_two)
    events = run(engine, [sample("bad", num_inference_steps=4, seed=1), MATE])
    assert isinstance(failures(events)["bad"], NonFiniteError)
    check_that_the_mate_is_unharmed(events, mate_alone)


def test_a_decode_that_raises_fails_the_sample_it_raises_for_only(
    engine: Engine,
    pipeline: ResidentPipeline,
    mate_alone: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    decode = pipeline.decode
    seen: list[torch.Tensor] = []

    def refuse_the_first(latents: torch.Tensor) -> torch.Tensor:
        seen.append(latents[:1].clone())
        if torch.equal(latents[:1], seen[0]):
            raise RuntimeError("the decoder refuses")
        return decode(latents)

    monkeypatch.setattr(pipeline, "decode", refuse_the_first)
    events = run(engine, [sample("bad", num_inference_steps=4, seed=1), MATE])
    assert str(failures(events)["bad"]) == "the decoder refuses"
    check_that_the_mate_is_unharmed(events, mate_alone)
