"""The simulator does what the engine does."""

from collections import deque

import pytest

from tests.worker.engine.support import sample
from worker.batching import StepCurve
from worker.engine import Engine, Finished, ResidentPipeline
from worker.simulation.device import Device
from worker.simulation.gpu import SimulatedWorker, Strategy
from worker.simulation.workload import Job, Shape

SIZES = ((32, 32), (64, 32), (32, 64))
MIXED = [Shape(size=SIZES[i % 3], steps=1 + i * 5 % 4, rows=1 + i % 2, n=1) for i in range(12)]
# One joins with every tick, and all are done with the same one.
TOGETHER = [Shape(size=SIZES[0], steps=5 - i, rows=1, n=1) for i in range(5)]


@pytest.mark.parametrize(("shapes", "max_rows"), [(MIXED, 2), (TOGETHER, 6)])
def test_the_simulator_takes_the_engines_ticks_one_by_one(
    pipeline: ResidentPipeline, shapes: list[Shape], max_rows: int
) -> None:
    waiting = deque(
        sample(
            f"{i}",
            width=shape.size[0],
            height=shape.size[1],
            num_inference_steps=shape.steps,
            guidance_scale=3.5 if shape.rows == 2 else 1.0,
        )
        for i, shape in enumerate(shapes)
    )
    engine = Engine(pipeline, max_rows=max_rows)
    real = []
    while waiting or not engine.is_idle:
        while waiting and engine.has_room:
            engine.add(waiting.popleft())
        done = [event.key for event in engine.step() if isinstance(event, Finished)]
        real.append((engine.last_tick.size, engine.last_tick.rows, done))

    # Nothing being measured, the engine takes a call's cost for its pixels.
    curves = {
        (w, h): StepCurve({rows: float(rows * w * h) for rows in (1, max_rows)}) for w, h in SIZES
    }
    queue = deque(Job(i, shape, 0.0) for i, shape in enumerate(shapes))
    worker = SimulatedWorker(Device("test", curves, dict.fromkeys(SIZES, 0.0)), Strategy.STEP_LEVEL)
    simulated = []
    while queue or not worker.is_idle:
        worker.take(queue, 0.0)
        tick = worker.tick(0.0)
        simulated.append((tick.size, tick.rows, [str(s.job.id) for s in tick.decoded]))

    assert simulated == real
