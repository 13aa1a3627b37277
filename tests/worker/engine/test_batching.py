"""Who shares a batch: admission, joining and leaving, sizes, cancelling."""

from collections import Counter

import pytest

from tests.worker.engine.support import images, largest_difference, run, sample
from worker.engine import Engine, Finished, Progress, ResidentPipeline
from worker.engine.decoder import Decoder


def advanced(engine: Engine) -> set[str]:
    """The samples that one tick advances."""
    return {event.key for event in engine.step() if isinstance(event, Progress)}


def test_samples_are_admitted_in_order_while_rows_fit(pipeline: ResidentPipeline) -> None:
    engine = Engine(pipeline, max_rows=4)
    for key, guidance_scale in [("a", 3.5), ("b", 1.0), ("c", 3.5), ("d", 1.0)]:
        engine.add(sample(key, guidance_scale=guidance_scale, num_inference_steps=3))
    # "d" would fit beside them, but "c" came first.
    assert advanced(engine) == {"a", "b"}
    assert (engine.rows, engine.in_flight, engine.waiting) == (3, 2, 2)
    assert (engine.last_tick.rows, engine.last_tick.samples) == (3, 2)
    assert engine.last_tick.size == (32, 32)


def test_a_batch_never_holds_more_rows_than_it_may(pipeline: ResidentPipeline) -> None:
    engine = Engine(pipeline, max_rows=5)
    for i in range(9):
        engine.add(
            sample(f"{i}", num_inference_steps=1 + i % 3, guidance_scale=3.5 if i % 2 else 1.0)
        )
    finished = []
    while not engine.is_idle:
        finished += [event.key for event in engine.step() if isinstance(event, Finished)]
        assert engine.last_tick.rows <= 5
        assert engine.rows <= 5
    assert sorted(finished) == [f"{i}" for i in range(9)]


def test_a_sample_too_large_for_the_batch_is_drawn_alone(pipeline: ResidentPipeline) -> None:
    engine = Engine(pipeline, max_rows=1)
    engine.add(sample("small", guidance_scale=1.0))
    engine.add(sample("large", guidance_scale=3.5))
    assert advanced(engine) == {"small"}
    assert advanced(engine) == {"small"}
    assert advanced(engine) == {"large"}


def test_a_sample_joins_and_leaves_between_steps_without_changing_the_others(
    engine: Engine, pipeline: ResidentPipeline
) -> None:
    long = sample("long", num_inference_steps=6)
    alone = images(run(Engine(pipeline, max_rows=8), [long]))["long"]
    engine.add(long)
    events = engine.step()
    engine.add(sample("short", num_inference_steps=2, seed=3))
    events += engine.step()
    assert engine.last_tick.samples == 2
    events += run(engine)
    finished = [event.key for event in events if isinstance(event, Finished)]
    assert finished == ["short", "long"]
    assert largest_difference(images(events)["long"], alone) <= 1


def test_progress_counts_every_step_of_every_sample(engine: Engine) -> None:
    events = run(engine, [sample("a", num_inference_steps=2), sample("b", num_inference_steps=4)])
    told = [(e.key, e.step, e.steps) for e in events if isinstance(e, Progress)]
    assert [entry for entry in told if entry[0] == "a"] == [("a", 1, 2), ("a", 2, 2)]
    assert [entry for entry in told if entry[0] == "b"] == [("b", i, 4) for i in (1, 2, 3, 4)]


def test_sizes_take_turns_by_what_they_cost(pipeline: ResidentPipeline) -> None:
    engine = Engine(pipeline, max_rows=16)
    for i in range(4):
        engine.add(sample(f"small {i}", num_inference_steps=12))
    engine.add(sample("wide", width=64, num_inference_steps=12))
    engine.add(sample("tall", height=64, num_inference_steps=12))
    turns = []
    for _ in range(15):
        engine.step()
        turns.append(engine.last_tick.size)
    # Four small samples make a call of twice the pixels, so theirs is half as often the turn.
    assert Counter(turns) == {(32, 32): 3, (64, 32): 6, (32, 64): 6}


def test_no_size_starves_however_many_samples_of_another_keep_coming(
    pipeline: ResidentPipeline,
) -> None:
    engine = Engine(pipeline, max_rows=8)
    engine.add(sample("lone", width=64, num_inference_steps=3))
    ticks = 0
    events = []
    while not any(isinstance(event, Finished) and event.key == "lone" for event in events):
        engine.add(sample(f"{ticks}", num_inference_steps=1, guidance_scale=1.0))
        events = engine.step()
        ticks += 1
        assert ticks <= 6


def test_a_waiting_sample_can_be_removed(pipeline: ResidentPipeline) -> None:
    engine = Engine(pipeline, max_rows=2)
    engine.add(sample("a"))
    engine.add(sample("b"))
    engine.step()
    engine.remove("b")
    assert engine.waiting == 0
    assert list(images(run(engine))) == ["a"]


def test_a_sample_in_denoising_can_be_removed(engine: Engine, pipeline: ResidentPipeline) -> None:
    kept = sample("kept", num_inference_steps=4)
    alone = images(run(Engine(pipeline, max_rows=8), [kept]))["kept"]
    engine.add(kept)
    engine.add(sample("removed", num_inference_steps=4, seed=2))
    events = engine.step()
    engine.remove("removed")
    assert engine.rows == 2
    events += run(engine)
    assert list(images(events)) == ["kept"]
    assert largest_difference(images(events)["kept"], alone) <= 1


def test_a_sample_that_waits_for_the_decoder_can_be_removed(pipeline: ResidentPipeline) -> None:
    engine = Engine(pipeline, max_rows=4)
    engine._decoder = Decoder(pipeline, engine.capacity, pixel_budget=1)
    for key in ("a", "b"):
        engine.add(sample(key, num_inference_steps=1, guidance_scale=1.0))
    assert list(images(engine.step())) == ["a"]
    assert (engine.rows, engine.in_flight, engine.is_idle) == (0, 1, False)
    engine.remove("b")
    assert engine.is_idle
    assert engine.step() == []


def test_removing_an_unknown_sample_does_nothing(engine: Engine) -> None:
    engine.remove("nobody")
    assert engine.is_idle


def test_a_key_is_free_again_once_its_sample_is_gone(engine: Engine) -> None:
    engine.add(sample("a"))
    with pytest.raises(ValueError, match="key 'a'"):
        engine.add(sample("a"))
    engine.step()
    with pytest.raises(ValueError, match="key 'a'"):
        engine.add(sample("a"))
    run(engine)
    engine.add(sample("a"))
    engine.remove("a")
    engine.add(sample("a"))


@pytest.mark.parametrize("size", [(0, 32), (32, -32), (33, 32), (32, 30)])
def test_impossible_sizes_are_refused(size: tuple[int, int], engine: Engine) -> None:
    width, height = size
    with pytest.raises(ValueError, match="multiples of 4"):
        engine.add(sample("a", width=width, height=height))
    assert engine.is_idle


def test_impossible_step_counts_and_caps_are_refused(
    engine: Engine, pipeline: ResidentPipeline
) -> None:
    with pytest.raises(ValueError, match="at least one step"):
        engine.add(sample("a", num_inference_steps=0))
    with pytest.raises(ValueError, match="max_rows"):
        Engine(pipeline, max_rows=0)


def test_a_tick_without_work_does_nothing(engine: Engine) -> None:
    assert engine.step() == []
    assert engine.last_tick.rows == 0
    assert engine.last_tick.size is None


def test_a_tick_tells_where_its_time_went(engine: Engine) -> None:
    engine.add(sample("a", num_inference_steps=1))
    engine.step()
    tick = engine.last_tick
    assert tick.decoded == 1
    phases = (tick.encode_seconds, tick.unet_seconds, tick.scheduler_seconds, tick.decode_seconds)
    assert all(0 < seconds < 60 for seconds in phases)
