"""The batch by size: what pays, what fits, what the operator wants."""

import pytest
import torch

from tests.worker.engine.fake_cuda import FakeCudaMemory
from tests.worker.engine.support import images, run, sample
from worker.batching import Size
from worker.batching.sizes import pixels_of
from worker.engine import Capacity, Engine, ResidentPipeline
from worker.engine.calibrate import LADDER, Calibrator
from worker.engine.residency import Residency

SIZE = (32, 32)
PIXELS = 32 * 32


def measuring(pipeline: ResidentPipeline, memory: FakeCudaMemory, most: int | None = 8) -> Capacity:
    return Capacity(memory, Calibrator(pipeline, memory, most=most), most=most)


class Machine:
    """How long U-Net calls take, and so what time it is; both as the test says."""

    def __init__(self, pipeline: ResidentPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        # How many times as long calls of so many rows and more take.
        self.slow_from, self.factor = 1, 1.0
        self.calls = 0
        real = pipeline.predict_noise

        def timed(latents: torch.Tensor, *args: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            is_slow = len(latents) >= self.slow_from
            self.now += (4 + len(latents)) / 1000 * (self.factor if is_slow else 1.0)
            return real(latents, *args)

        decode = pipeline.decode

        def timed_decode(latents: torch.Tensor) -> object:
            self.now += 0.001
            return decode(latents)

        monkeypatch.setattr(pipeline, "predict_noise", timed)
        monkeypatch.setattr(pipeline, "decode", timed_decode)
        for module in ("engine.calibrate", "engine.tick"):
            monkeypatch.setattr(f"worker.{module}.time.perf_counter", lambda: self.now)
        monkeypatch.setattr("worker.batching.looks.monotonic", lambda: self.now)


def test_a_measured_size_has_a_curve_and_a_cap_from_it(
    pipeline: ResidentPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    Machine(pipeline, monkeypatch)
    capacity = Capacity.measuring(pipeline, most=12)
    assert capacity.learn(SIZE, patience=30) is None
    calibration = capacity.calibrations[SIZE]
    points = calibration.curve.points
    assert list(points) == [rows for rows in LADDER if rows <= 12]
    assert capacity.cap(SIZE) == calibration.curve.cap(least=2)
    assert capacity.seconds(SIZE, 4) == points[4]
    assert calibration.decode_seconds is not None and calibration.decode_seconds > 0
    assert calibration.step_bytes == {}
    assert capacity.needs(SIZE, 1) is None


def test_no_more_rows_are_measured_than_the_operator_allows(pipeline: ResidentPipeline) -> None:
    capacity = Capacity.measuring(pipeline, most=3)
    capacity.learn(SIZE, patience=30)
    assert max(capacity.calibrations[SIZE].curve.points) <= 3
    assert capacity.cap(SIZE) <= 3
    one = Capacity.measuring(pipeline, most=1)
    one.learn(SIZE)
    assert (list(one.calibrations[SIZE].curve.points), one.cap(SIZE)) == ([1], 1)


def test_a_target_for_the_step_stops_the_measurement_and_bounds_the_batch(
    pipeline: ResidentPipeline,
) -> None:
    capacity = Capacity.measuring(pipeline, target_seconds=1e-6)
    capacity.learn(SIZE, patience=30)
    assert list(capacity.calibrations[SIZE].curve.points) == [1, 2]
    assert capacity.cap(SIZE) == 2


def test_patience_bounds_the_measurement(pipeline: ResidentPipeline) -> None:
    capacity = Capacity.measuring(pipeline)
    capacity.learn(SIZE, patience=0)
    assert list(capacity.calibrations[SIZE].curve.points) == [1]


def test_a_noisy_moment_does_not_stay_in_the_curve(
    pipeline: ResidentPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    calls: list[int] = []
    real = pipeline.predict_noise

    def timed(latents: torch.Tensor, *args: torch.Tensor) -> torch.Tensor:
        nonlocal now
        calls.append(len(latents))
        # When 2 and 3 rows are measured first, they take thrice as long.
        is_noisy = len(latents) in (2, 3) and calls.count(len(latents)) <= 3
        now += (4 + len(latents)) * (3 if is_noisy else 1)
        return real(latents, *args)

    monkeypatch.setattr(pipeline, "predict_noise", timed)
    monkeypatch.setattr("worker.engine.calibrate.time.perf_counter", lambda: now)
    capacity = Capacity.measuring(pipeline, most=6)
    capacity.learn(SIZE, patience=1000)
    points = capacity.calibrations[SIZE].curve.points
    assert points == {rows: 4 + rows for rows in (1, 2, 3, 4, 6)}


@pytest.mark.parametrize(("slow_from", "factor", "cap"), [(4, 10.0, 3), (1, 5.0, 8)])
def test_a_batch_that_was_measured_in_a_bad_moment_is_measured_again(
    pipeline: ResidentPipeline,
    monkeypatch: pytest.MonkeyPatch,
    slow_from: int,
    factor: float,
    cap: int,
) -> None:
    machine = Machine(pipeline, monkeypatch)
    capacity = Capacity.measuring(pipeline, most=8)
    machine.slow_from, machine.factor = slow_from, factor
    capacity.learn(SIZE, patience=30)
    assert capacity.cap(SIZE) == cap
    machine.factor = 1.0
    machine.now += 60
    assert capacity.look_again(lambda: True) == [SIZE]
    assert capacity.cap(SIZE) == 8
    assert dict(capacity.calibrations[SIZE].curve.points)[1] == pytest.approx(0.005)
    calls = machine.calls
    assert capacity.look_again(lambda: True) == []
    assert machine.calls == calls


def test_a_look_at_a_bad_moment_or_one_that_is_broken_off_changes_nothing(
    pipeline: ResidentPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine(pipeline, monkeypatch)
    capacity = Capacity.measuring(pipeline, most=8)
    machine.factor = 2.0
    capacity.learn(SIZE, patience=30)
    before = dict(capacity.calibrations[SIZE].curve.points)
    machine.now += 3600
    machine.factor = 1.0
    wanted = iter([True, True, False])
    assert capacity.look_again(lambda: next(wanted)) == []
    assert dict(capacity.calibrations[SIZE].curve.points) == before
    machine.factor = 9.0
    assert capacity.look_again(lambda: True) == []
    assert dict(capacity.calibrations[SIZE].curve.points) == before


def test_steps_of_an_engine_that_contradict_its_curve_make_it_measure_again(
    pipeline: ResidentPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine(pipeline, monkeypatch)
    capacity = Capacity.measuring(pipeline, most=4)
    machine.factor = 5.0
    capacity.learn(SIZE, patience=30)
    machine.factor = 1.0
    engine = Engine(pipeline, capacity=capacity)
    # Long before the minute after which it would look anyway.
    machine.now += 5
    run(engine, [sample("a", num_inference_steps=20)])
    assert capacity.look_again(lambda: True) == [SIZE]


def test_sizes_of_about_as_many_pixels_share_a_measurement(pipeline: ResidentPipeline) -> None:
    capacity = Capacity.measuring(pipeline, most=2)
    for size in [(64, 64), (96, 48), (64, 60), (32, 32)]:
        capacity.learn(size)
    assert list(capacity.calibrations) == [(64, 64), (96, 48), (32, 32)]
    curves = {size: measured.curve for size, measured in capacity.calibrations.items()}
    assert capacity.seconds((32, 30), 2) == curves[32, 32].scaled(30 / 32).seconds(2)
    assert capacity.seconds((128, 128), 2) == curves[96, 48].scaled(128 * 128 / 96 / 48).seconds(2)


def test_memory_bounds_the_batch_by_what_a_row_was_measured_to_take(
    pipeline: ResidentPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = FakeCudaMemory(free=1000 * PIXELS, step=10)
    memory.install(pipeline, monkeypatch)
    capacity = measuring(pipeline, memory)
    capacity.learn(SIZE, patience=30)
    assert capacity.needs(SIZE, 3) == 30 * PIXELS
    assert capacity.needs((64, 32), 1) == 20 * PIXELS
    memory.free = 35 * PIXELS
    capacity.refresh()
    assert capacity.cap(SIZE) == 3
    assert capacity.cap((64, 32)) == 1
    assert capacity.refuse((64, 32)) is None
    refusal = capacity.refuse((64, 64))
    assert "64x64 px" in str(refusal)


def test_a_measurement_ends_where_memory_does(
    pipeline: ResidentPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = FakeCudaMemory(free=3 * PIXELS, step=1, decode=4)
    memory.install(pipeline, monkeypatch)
    capacity = measuring(pipeline, memory)
    assert capacity.learn(SIZE, patience=30) is None
    calibration = capacity.calibrations[SIZE]
    assert list(calibration.curve.points) == [1, 2, 3]
    assert calibration.step_bytes == {rows: rows * PIXELS for rows in (1, 2, 3)}
    assert (calibration.decode_seconds, calibration.decode_bytes) == (None, None)
    # Four rows were seen not to fit, the decoder had to be tried.
    assert memory.refused == 1


def test_a_size_of_which_not_one_row_fits_is_refused_with_numbers(
    pipeline: ResidentPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    gib = 2**30
    memory = FakeCudaMemory(free=8 * gib, step=gib // PIXELS)
    memory.install(pipeline, monkeypatch)
    capacity = measuring(pipeline, memory)
    assert capacity.learn(SIZE) is None
    assert str(capacity.learn((128, 128))) == (
        "128x128 px does not fit into the device's memory: needs 16.0 GiB, 8.0 GiB free"
    )


def test_the_decoder_of_a_size_that_would_not_fit_is_asked_for_tiles(
    pipeline: ResidentPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = FakeCudaMemory(free=1000 * PIXELS, decode=10)
    memory.install(pipeline, monkeypatch)
    capacity = measuring(pipeline, memory)
    capacity.learn(SIZE)
    memory.free = 15 * PIXELS
    capacity.refresh()
    assert capacity.decode_needs((64, 32)) == 20 * PIXELS
    assert capacity.decode_fits(SIZE)
    assert not capacity.decode_fits((64, 32))


def test_without_a_measurement_a_number_of_rows_is_needed(pipeline: ResidentPipeline) -> None:
    with pytest.raises(ValueError, match="number of rows"):
        Capacity()
    with pytest.raises(ValueError, match="max_rows must be at least 1"):
        Capacity(most=0)


def test_an_engine_measures_a_size_when_it_first_meets_it(pipeline: ResidentPipeline) -> None:
    capacity = Capacity.measuring(pipeline, most=4)
    capacity.learn((64, 64))
    engine = Engine(pipeline, capacity=capacity)
    drawn = images(run(engine, [sample("a"), sample("b", width=64, height=64)]))
    assert sorted(drawn) == ["a", "b"]
    assert set(capacity.calibrations) == {(32, 32), (64, 64)}


def test_before_anything_is_measured_the_prediction_decides(
    pipeline: ResidentPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Predicted:
        def step_bytes(self, size: Size, rows: int) -> int:
            return 10 * rows * pixels_of(size)

        def decode_bytes(self, size: Size) -> int:
            return 30 * pixels_of(size)

    memory = FakeCudaMemory(free=25 * PIXELS, step=5)
    memory.install(pipeline, monkeypatch)
    capacity = Capacity(memory, Calibrator(pipeline, memory, most=8), prediction=Predicted())
    assert capacity.cap(SIZE) == 2
    assert not capacity.decode_fits(SIZE)
    assert "needs" in str(capacity.learn((64, 64)))
    assert memory.rows == []
    # What was measured is believed instead.
    assert capacity.learn(SIZE, patience=30) is None
    assert capacity.needs(SIZE, 2) == 10 * PIXELS


def test_where_images_are_decoded_by_tiles_the_whole_is_not_tried(
    pipeline: ResidentPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []
    monkeypatch.setattr(pipeline, "decode", lambda latents: tried.append(latents.shape))
    monkeypatch.setattr("worker.engine.calibrate.PIXEL_BUDGET", 32 * 32)
    for residency, size in ((Residency.ALL, (64, 64)), (Residency.TILE_VAE, (64, 64))):
        monkeypatch.setattr(pipeline, "residency", residency)
        tried.clear()
        Capacity.measuring(pipeline, most=1).learn(size, patience=0)
        assert bool(tried) == (residency is Residency.ALL)
