"""What holds whatever is simulated."""

import subprocess
import sys
from collections import Counter, deque

from hypothesis import given, settings
from hypothesis import strategies as st

from worker.batching import StepCurve
from worker.simulation.device import Device
from worker.simulation.gpu import SimulatedWorker, Strategy
from worker.simulation.report import summarize
from worker.simulation.simulate import simulate
from worker.simulation.workload import Clients, Job, Poisson, Shape, Workload

SIZES = ((64, 64), (128, 64), (128, 128))
seconds = st.floats(0.001, 1)


@st.composite
def devices(draw: st.DrawFn) -> Device:
    points = draw(st.dictionaries(st.integers(1, 32), seconds, min_size=1, max_size=5))
    return Device(
        "any",
        {SIZES[0]: StepCurve(points)},
        {SIZES[0]: draw(st.floats(0, 1))},
        draw(st.floats(0, 0.1)),
        max_rows=draw(st.none() | st.integers(1, 32)),
    )


@st.composite
def workloads(draw: st.DrawFn) -> Workload:
    least = draw(st.integers(1, 8))
    return Workload(
        draw(st.dictionaries(st.sampled_from(SIZES), st.floats(0.1, 9), min_size=1)),
        (least, least + draw(st.integers(0, 8))),
        (0, draw(st.floats(0, 8))),
        draw(st.integers(1, 4)),
    )


@given(
    device=devices(),
    workload=workloads(),
    load=st.builds(Clients, st.integers(1, 40)) | st.builds(Poisson, st.floats(0.1, 5000)),
    strategy=st.sampled_from(Strategy),
    gpus=st.integers(1, 3),
    requests=st.integers(1, 40),
    seed=st.integers(0, 99),
)
@settings(max_examples=150, deadline=None)
def test_every_request_is_drawn_once_and_in_good_order(
    device: Device,
    workload: Workload,
    load: Clients | Poisson,
    strategy: Strategy,
    gpus: int,
    requests: int,
    seed: int,
) -> None:
    trace = simulate(device, workload, load, strategy, gpus=gpus, requests=requests, seed=seed)
    assert len(trace.jobs) == requests
    for job in trace.jobs:
        assert job.claimed is not None and job.begun is not None and job.ended is not None
        assert job.arrived <= job.claimed <= job.begun < job.ended
        assert job.images_left == 0
    drawn = Counter(sample.key for tick in trace.ticks for sample in tick.decoded)
    assert set(drawn.values()) == {1}
    assert len(drawn) == requests * workload.n
    # No step is lost and none is done twice.
    shapes = [job.shape for job in trace.jobs]
    assert sum(tick.rows for tick in trace.ticks) == sum(s.steps * s.rows * s.n for s in shapes)
    # Workers never do two things at once.
    assert summarize(trace).busy_share <= 1 + 1e-9


def test_no_size_starves_beside_two_that_keep_coming() -> None:
    curve = StepCurve({1: 0.1, 2: 0.11, 4: 0.14, 8: 0.2, 16: 0.38})
    device = Device("test", {SIZES[0]: curve}, {SIZES[0]: 0.0})
    workload = Workload({SIZES[0]: 50, SIZES[1]: 49, SIZES[2]: 1}, steps=(5, 20))
    trace = simulate(device, workload, Clients(40), requests=1500)
    costliest = max(tick.ended - tick.began for tick in trace.ticks)
    rare = [job for job in trace.jobs if job.shape.size == SIZES[2]]
    assert len(rare) > 5
    for job in rare:
        assert job.ended is not None and job.begun is not None
        # Between two of its steps the two other sizes have no more than two quanta each.
        assert job.ended - job.begun <= 5 * costliest * job.shape.steps


def test_sizes_that_are_there_share_the_time_evenly() -> None:
    curve = StepCurve({1: 0.1, 2: 0.11, 4: 0.14, 8: 0.2, 16: 0.38})
    worker = SimulatedWorker(
        Device("test", {SIZES[0]: curve}, {SIZES[0]: 0.0}), Strategy.STEP_LEVEL
    )
    queue = deque(Job(i, Shape(size, 1000, 2, 1), 0.0) for i, size in enumerate(SIZES))
    while queue:
        worker.take(queue, 0.0)
        worker.tick(0.0)
    ticks = [worker.tick(0.0) for _ in range(600)]
    spent = dict.fromkeys(SIZES, 0.0)
    for tick in ticks:
        assert tick.size is not None
        spent[tick.size] += tick.ended - tick.began
    costliest = max(tick.ended - tick.began for tick in ticks)
    # Cheap steps are taken more often: no two sizes are further apart than two quanta.
    assert max(spent.values()) - min(spent.values()) < 2 * costliest


def test_the_simulator_needs_neither_torch_nor_matplotlib() -> None:
    heavy = {"torch", "diffusers", "transformers", "numpy", "matplotlib"}
    modules = ("device", "gpu", "options", "plan", "plot", "published", "report", "run", "simulate")
    code = (
        f"import sys, {', '.join(f'worker.simulation.{name}' for name in modules)}\n"
        f"print(sorted({heavy!r} & {{name.split('.')[0] for name in sys.modules}}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
