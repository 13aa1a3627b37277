"""Memory runs out, in every phase: nothing is lost, nothing begins anew, neighbours are spared."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.worker.engine.fake_cuda import MESSAGE, FakeCudaMemory
from tests.worker.engine.support import images, largest_difference, run, sample
from worker.engine import Capacity, DoesNotFit, Engine, Failed, Finished, Progress, ResidentPipeline
from worker.engine.conditioning import PromptCache
from worker.engine.denoise import Batch
from worker.engine.memory import is_fatal, is_out_of_memory
from worker.engine.sample import Sample

PIXELS = 32 * 32

REQUESTS = [
    sample("a", num_inference_steps=4, seed=1),
    sample("b", num_inference_steps=6, seed=2, guidance_scale=1.0, prompt="a panda"),
    sample("c", num_inference_steps=3, seed=3, guidance_scale=7.0),
    sample("d", num_inference_steps=5, seed=4, prompt="a fox on red"),
]


@pytest.fixture(scope="module")
def undisturbed(pipeline: ResidentPipeline) -> dict[str, Any]:
    """The images of the requests, with all the memory in the world."""
    return images(run(Engine(pipeline, max_rows=16), REQUESTS))


def ran_out(*_: Any, **__: Any) -> Any:
    raise torch.OutOfMemoryError(MESSAGE)


def failing_once(function: Callable[..., Any], at: int) -> Callable[..., Any]:
    """``function``, which runs out of memory in its call number ``at`` (from 1)."""
    calls = 0

    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        return ran_out() if calls == at else function(*args, **kwargs)

    return call


def drawn_with_troubles(engine: Engine) -> tuple[list[Any], int, int]:
    """All events of the requests, and the numbers of shortages and of samples put back."""
    for request in REQUESTS:
        engine.add(request)
    events, shortages, put_back = [], 0, 0
    for _ in range(200):
        if engine.is_idle:
            return events, shortages, put_back
        events += engine.step()
        shortages += engine.last_tick.out_of_memory
        put_back += engine.last_tick.put_back
    raise AssertionError("the engine does not come to an end")


def check_that_all_are_as_undisturbed(events: list[Any], undisturbed: dict[str, Any]) -> None:
    drawn = images(events)
    assert sorted(drawn) == sorted(undisturbed)
    for key, image in drawn.items():
        assert largest_difference(image, undisturbed[key]) <= 1, key
    for request in REQUESTS:
        steps = [e.step for e in events if isinstance(e, Progress) and e.key == request.key]
        assert steps == list(range(1, request.num_inference_steps + 1)), request.key


@pytest.mark.parametrize("at", [1, 3])
@pytest.mark.parametrize(
    ("where", "name"),
    [
        (ResidentPipeline, "encode_prompts"),
        (ResidentPipeline, "predict_noise"),
        (ResidentPipeline, "decode"),
        (ResidentPipeline, "new_scheduler"),
        (Batch, "guide"),
        (Sample, "model_input"),
        (Sample, "advance"),
    ],
)
def test_a_passing_shortage_in_any_phase_costs_time_and_nothing_else(
    where: type,
    name: str,
    at: int,
    pipeline: ResidentPipeline,
    undisturbed: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    failing = failing_once(getattr(where, name), at)
    monkeypatch.setattr(where, name, lambda *args, **kwargs: failing(*args, **kwargs))
    events, shortages, _ = drawn_with_troubles(Engine(pipeline, max_rows=16))
    check_that_all_are_as_undisturbed(events, undisturbed)
    # The one batch of prompts is encoded again, each alone, before the tick is over.
    assert shortages == (0 if name == "encode_prompts" else 1)


def test_a_scheduler_that_runs_out_of_memory_in_a_step_takes_that_step_again(
    pipeline: ResidentPipeline, undisturbed: dict[str, Any]
) -> None:
    engine = Engine(pipeline, max_rows=16)
    for request in REQUESTS:
        engine.add(request)
    events = engine.step()
    scheduler = engine._entries["a"].sample._scheduler
    step = scheduler.step
    failures = iter([ran_out])

    def step_that_changes_and_then_fails_once(*args: Any, **kwargs: Any) -> Any:
        result = step(*args, **kwargs)
        next(failures, lambda: None)()
        return result

    scheduler.step = step_that_changes_and_then_fails_once
    again = engine.step()
    assert engine.last_tick.out_of_memory == 1
    assert sorted(event.key for event in again) == ["b", "c", "d"]
    events += again + run(engine)
    check_that_all_are_as_undisturbed(events, undisturbed)


def test_a_batch_that_does_not_fit_shrinks_and_its_youngest_go_on_later_where_they_were(
    pipeline: ResidentPipeline, undisturbed: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = FakeCudaMemory(free=4 * PIXELS, step=1)
    memory.install(pipeline, monkeypatch)
    events, shortages, put_back = drawn_with_troubles(Engine(pipeline, max_rows=16))
    check_that_all_are_as_undisturbed(events, undisturbed)
    # Seven rows were tried, three are left: "a" and "b" go on, the others wait.
    assert (shortages, put_back) == (1, 2)
    assert max(memory.rows) <= 4


def test_memory_that_gets_short_midway_sends_the_youngest_back_with_their_steps_done(
    pipeline: ResidentPipeline, undisturbed: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = FakeCudaMemory(free=16 * PIXELS, step=1)
    memory.install(pipeline, monkeypatch)
    engine = Engine(pipeline, max_rows=16)
    for request in REQUESTS:
        engine.add(request)
    events = engine.step() + engine.step()
    memory.free = 3 * PIXELS
    events += run(engine)
    check_that_all_are_as_undisturbed(events, undisturbed)
    assert memory.rows[:2] == [7, 7]
    assert max(memory.rows[2:]) <= 3


def test_one_row_at_a_time_is_enough_for_guidance(
    pipeline: ResidentPipeline, undisturbed: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = FakeCudaMemory(free=PIXELS, step=1)
    memory.install(pipeline, monkeypatch)
    events, _, _ = drawn_with_troubles(Engine(pipeline, max_rows=16))
    check_that_all_are_as_undisturbed(events, undisturbed)
    assert set(memory.rows) == {1}


def test_the_batch_grows_again_once_there_is_memory(
    pipeline: ResidentPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = FakeCudaMemory(free=4 * PIXELS, step=1)
    memory.install(pipeline, monkeypatch)
    engine = Engine(pipeline, max_rows=8)
    run(engine, [sample(f"{i}", guidance_scale=1.0, seed=i) for i in range(8)])
    assert engine.max_rows == 8
    assert engine.capacity.cap((32, 32)) == 4
    memory.free = 8 * PIXELS
    run(engine, [sample(f"{i}", guidance_scale=1.0, num_inference_steps=64) for i in range(8)])
    assert 4 < engine.capacity.cap((32, 32)) <= 8


def test_what_does_not_fit_alone_fails_by_name_and_number_and_spares_the_others(
    pipeline: ResidentPipeline, undisturbed: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = FakeCudaMemory(free=8 * PIXELS, step=1)
    memory.install(pipeline, monkeypatch)
    capacity = Capacity.measuring(pipeline, most=8)
    monkeypatch.setattr(capacity, "_memory", memory)
    monkeypatch.setattr(capacity._calibrator, "_memory", memory)
    assert capacity.learn((32, 32)) is None
    engine = Engine(pipeline, capacity=capacity)
    engine.add(sample("large", width=128, height=128))
    events, _, _ = drawn_with_troubles(engine)
    [failed] = [event for event in events if isinstance(event, Failed)]
    assert failed.key == "large"
    assert isinstance(failed.error, DoesNotFit)
    assert str(failed.error) == (
        "128x128 px does not fit into the device's memory: needs 0.0 MiB, 0.0 MiB free"
    )
    check_that_all_are_as_undisturbed([e for e in events if e is not failed], undisturbed)


@pytest.mark.parametrize("phase", ["encode_prompts", "predict_noise", "decode"])
def test_a_lasting_shortage_fails_each_sample_clearly_and_leaves_the_engine_usable(
    phase: str, pipeline: ResidentPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(pipeline, max_rows=16)
    monkeypatch.setattr(pipeline, phase, ran_out)
    events, _, _ = drawn_with_troubles(engine)
    failed = {event.key: event.error for event in events if isinstance(event, Failed)}
    assert sorted(failed) == ["a", "b", "c", "d"]
    assert all(isinstance(error, DoesNotFit) for error in failed.values())
    assert all("does not fit into the device's memory" in str(e) for e in failed.values())
    monkeypatch.undo()
    assert len(images(run(engine, REQUESTS))) == 4


def test_a_decoder_short_of_memory_takes_fewer_images_then_tiles(
    pipeline: ResidentPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = [
        sample(f"{i}", width=128, height=96, num_inference_steps=1, seed=i) for i in range(3)
    ]
    whole = images(run(Engine(pipeline, max_rows=16), requests))
    memory = FakeCudaMemory(free=100 * 64, decode=1)
    memory.install(pipeline, monkeypatch)
    tiled = images(run(Engine(pipeline, max_rows=16), requests))
    assert sorted(tiled) == sorted(whole)
    for key, image in tiled.items():
        assert image.size == (128, 96)
        assert largest_difference(image, whole[key]) < 60, key


def test_memory_that_falls_to_a_row_fails_nobody_who_fits_alone(
    pipeline: ResidentPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cap falls below what is in the group, and a call of one row runs out once as well."""
    requests = [sample(f"{i}", guidance_scale=1.0, num_inference_steps=4, seed=i) for i in range(4)]
    sound = images(run(Engine(pipeline, max_rows=8), requests))
    memory = FakeCudaMemory(free=8 * PIXELS, step=1)
    memory.install(pipeline, monkeypatch)
    capacity = Capacity.measuring(pipeline, most=8)
    monkeypatch.setattr(capacity, "_memory", memory)
    monkeypatch.setattr(capacity._calibrator, "_memory", memory)
    capacity.learn((32, 32), patience=30)
    engine = Engine(pipeline, capacity=capacity)
    for request in requests:
        engine.add(request)
    events = engine.step()
    memory.free = PIXELS
    events += engine.step()
    assert (engine.last_tick.samples, engine.waiting) == (1, 3)
    monkeypatch.setattr(pipeline, "predict_noise", failing_once(pipeline.predict_noise, 1))
    drawn = images(events + run(engine))
    assert sorted(drawn) == sorted(sound)
    assert all(largest_difference(drawn[key], sound[key]) <= 1 for key in sound)


def test_a_single_row_that_fails_beside_waiting_ones_is_tried_again_first(
    pipeline: ResidentPipeline, undisturbed: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0
    predict_noise = pipeline.predict_noise

    def spoilt_then_short(latents: torch.Tensor, *args: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise RuntimeError("the batch is spoilt")
        # Each is then tried alone, "b" last: it takes one row.
        return ran_out() if calls == 5 else predict_noise(latents, *args)

    monkeypatch.setattr(pipeline, "predict_noise", spoilt_then_short)
    events, shortages, _ = drawn_with_troubles(Engine(pipeline, max_rows=16))
    check_that_all_are_as_undisturbed(events, undisturbed)
    assert shortages == 1


def test_a_new_size_that_the_model_refuses_fails_its_requests_only(
    pipeline: ResidentPipeline, undisturbed: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    predict_noise = pipeline.predict_noise

    def only_square(latents: torch.Tensor, *args: torch.Tensor) -> torch.Tensor:
        if latents.shape[2] != latents.shape[3]:
            raise RuntimeError("no such kernel")
        return predict_noise(latents, *args)

    monkeypatch.setattr(pipeline, "predict_noise", only_square)
    engine = Engine(pipeline, capacity=Capacity.measuring(pipeline, most=8))
    engine.add(sample("wide", width=128))
    events, _, _ = drawn_with_troubles(engine)
    [failed] = [event for event in events if isinstance(event, Failed)]
    assert (failed.key, str(failed.error)) == ("wide", "no such kernel")
    check_that_all_are_as_undisturbed([e for e in events if e is not failed], undisturbed)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError(MESSAGE),
        torch.AcceleratorError("CUDA error: out of memory"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
        MemoryError(),
    ],
)
def test_every_library_has_its_own_words_for_it(error: Exception) -> None:
    assert is_out_of_memory(error)
    assert not is_fatal(error)


def test_prompts_that_ran_out_of_memory_together_are_encoded_one_by_one(
    pipeline: ResidentPipeline, undisturbed: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = pipeline.encode_prompts

    def only_one(prompts: list[str], *args: Any) -> Any:
        return ran_out() if len(prompts) > 1 else encode(prompts, *args)

    monkeypatch.setattr(pipeline, "encode_prompts", only_one)
    events, _, _ = drawn_with_troubles(Engine(pipeline, max_rows=16))
    check_that_all_are_as_undisturbed(events, undisturbed)


@pytest.mark.parametrize("phase", ["encode_prompts", "predict_noise", "decode"])
def test_a_lost_device_ends_the_engine_instead_of_failing_everybody(
    phase: str, engine: Engine, pipeline: ResidentPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(*_: Any) -> None:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(pipeline, phase, lost)
    engine.add(sample("a", num_inference_steps=1))
    with pytest.raises(torch.AcceleratorError):
        engine.step()


def test_a_batch_spoilt_by_one_sample_is_tried_one_by_one(
    engine: Engine, pipeline: ResidentPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    mate = sample("mate", num_inference_steps=4)
    alone = images(run(Engine(pipeline, max_rows=8), [mate]))["mate"]
    predict_noise = pipeline.predict_noise
    bad = sample("bad", prompt="poison", guidance_scale=1.0, num_inference_steps=4)
    with torch.inference_mode():
        poison = PromptCache(pipeline).conditioning(bad)[0].prompt_embeds

    def refuse_poison(latents: torch.Tensor, *args: torch.Tensor) -> torch.Tensor:
        if any(torch.equal(row, poison[0]) for row in args[1]):
            raise RuntimeError("a broken adapter")
        return predict_noise(latents, *args)

    monkeypatch.setattr(pipeline, "predict_noise", refuse_poison)
    events = run(engine, [bad, mate])
    [failed] = [event for event in events if isinstance(event, Failed)]
    assert (failed.key, str(failed.error)) == ("bad", "a broken adapter")
    [finished] = [event for event in events if isinstance(event, Finished)]
    assert largest_difference(finished.image, alone) <= 1
