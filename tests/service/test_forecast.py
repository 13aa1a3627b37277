"""Forecasts against what happens, on the virtual clock of the simulator: the engine's own rules."""

import heapq
import random
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from itertools import count
from statistics import median

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from koala.workers import MeasuredSize
from service.forecast.forecast import forecast
from service.forecast.load import WINDOW_SECONDS, arrival_rate, share_returning
from service.forecast.pace import Pace
from service.forecast.situation import Lane, Situation, Work
from tests.support import spec
from worker.batching import StepCurve
from worker.simulation.device import Device
from worker.simulation.gpu import SimulatedWorker, Strategy
from worker.simulation.published import PROFILES
from worker.simulation.workload import Job, Sample, Shape, Workload

SMALL = {1: 0.011, 2: 0.013, 4: 0.02, 8: 0.033, 16: 0.057, 32: 0.098}
# What the demo model takes on two cores, and a larger size that is measured too.
DEMO = Device(
    "demo",
    {(64, 64): StepCurve(SMALL), (128, 128): StepCurve({r: 4 * s for r, s in SMALL.items()})},
    {(64, 64): 0.004, (128, 128): 0.016},
    tick_overhead_seconds=0.002,
)
GPU = PROFILES["4090/koala-lightning-700m"].device(((1024, 1024), (512, 512)), None, None)
MIXED = {(64, 64): 3.0, (128, 128): 1.0}
# And one that knows three sizes.
THREE = Device(
    "three",
    {**DEMO.curves, (96, 96): StepCurve({r: 2.25 * s for r, s in SMALL.items()})},
    {**DEMO.decode_seconds, (96, 96): 0.009},
    tick_overhead_seconds=0.002,
)
VARIED = {(64, 64): 2.0, (96, 96): 1.0, (128, 128): 1.0}
LARGE = {(1024, 1024): 1.0, (512, 512): 2.0}
LOOKED_AT = 0.1


@dataclass
class Scene:
    """Workers and a queue on a virtual clock; clients are told how long their jobs will take."""

    device: Device
    gpus: int = 1
    clients: int | None = None
    jobs: list[Job] = field(default_factory=list)
    # Jobs, moments, and what was foretold, in seconds from then.
    told: list[tuple[Job, float, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.now = 0.0
        self.queue: deque[Job] = deque()
        self.workers = [SimulatedWorker(self.device, Strategy.STEP_LEVEL) for _ in range(self.gpus)]
        self.idle = set(range(self.gpus))
        # What each worker held when its last tick began, and when that was.
        self.seen: list[tuple[float, list[Work]]] = [(0.0, []) for _ in range(self.gpus)]
        self.agenda: list[tuple[float, int, Callable[[], None]]] = []
        self.order = count()

    def run(self, arrivals: list[tuple[float, Shape]]) -> None:
        """Let jobs come, with ``clients`` as theirs end; look at some on their way."""
        self.coming = deque(shape for _, shape in arrivals)
        for moment, _ in arrivals[: self.clients]:
            self.at(moment, self.arrive)
        rng = random.Random(1)
        while self.agenda:
            self.now, _, happen = heapq.heappop(self.agenda)
            happen()
            if rng.random() < LOOKED_AT:
                running = [j for j in self.jobs if j.claimed is not None and j.ended is None]
                if running:
                    self.tell(rng.choice(running))

    def at(self, moment: float, happen: Callable[[], None]) -> None:
        heapq.heappush(self.agenda, (moment, next(self.order), happen))

    def arrive(self) -> None:
        if self.coming:
            job = Job(len(self.jobs), self.coming.popleft(), self.now)
            self.jobs.append(job)
            self.queue.append(job)
            self.tell(job)
            if self.idle:
                self.turn(self.idle.pop())

    def turn(self, index: int) -> None:
        worker = self.workers[index]
        worker.take(self.queue, self.now)
        self.seen[index] = (self.now, held(worker.samples))
        if worker.is_idle:
            self.idle.add(index)
            return
        tick = worker.tick(self.now)
        self.at(tick.ended, lambda: self.end(index, tick.decoded))

    def end(self, index: int, decoded: tuple[Sample, ...]) -> None:
        for sample in decoded:
            sample.job.images_left -= 1
            if not sample.job.images_left:
                sample.job.ended = self.now
                if self.clients is not None:
                    self.at(self.now, self.arrive)
        self.turn(index)

    def tell(self, job: Job) -> None:
        self.told.append((job, self.now, forecast(self.situation())[str(job.id)]))

    def situation(self) -> Situation:
        sizes = [
            MeasuredSize(
                width=size[0],
                height=size[1],
                max_rows=self.device.cap(size),
                step_seconds=dict(curve.points),
                decode_seconds=self.device.image_seconds(size),
            )
            for size, curve in self.device.curves.items()
        ]
        lanes = [
            Lane(str(i), Pace(sizes), tuple(replace(w, age=self.now - began) for w in works))
            for i, (began, works) in enumerate(self.seen)
        ]
        lately = [job for job in self.jobs if job.arrived >= self.now - WINDOW_SECONDS]
        since = self.now - lately[0].arrived if lately else 0.0
        ends = sorted(job.ended for job in self.jobs if job.ended is not None)
        returning = share_returning(ends[-8:], [job.arrived for job in self.jobs[-16:]])
        return Situation(
            lanes=tuple(lanes),
            queue=tuple(whole(job) for job in self.queue),
            arrivals_per_second=arrival_rate(len(lately), since, returning),
            arrivals=tuple(whole(job) for job in self.jobs[-16:]),
            returning=returning,
        )

    def errors(self) -> tuple[list[float], list[float]]:
        """Relative errors of what was foretold at the arrival of jobs, and in their middle."""
        first, later = [], []
        for job, moment, told in self.told:
            assert job.ended is not None
            left = job.ended - moment
            if moment == job.arrived:
                first.append((told - left) / left)
            elif left > (job.ended - job.arrived) / 4:
                later.append((told - left) / left)
        return first, later


def held(samples: list[Sample]) -> list[Work]:
    by_job: dict[Job, list[int]] = {}
    for sample in samples:
        by_job.setdefault(sample.job, []).append(sample.steps_left)
    jobs = sorted(by_job, key=lambda job: (job.claimed or 0.0, job.id))
    return [work(job, by_job[job]) for job in jobs]


def work(job: Job, steps_left: Iterable[int]) -> Work:
    shape = job.shape
    return Work(str(job.id), shape.size, shape.rows, tuple(steps_left))


def whole(job: Job) -> Work:
    return work(job, [job.shape.steps] * job.shape.n)


def requests(
    workload: Workload, count: int, per_second: float, seed: int = 3
) -> list[tuple[float, Shape]]:
    """Requests that know nothing of each other."""
    rng = random.Random(seed)
    moment, coming = 0.0, []
    for _ in range(count):
        coming.append((moment, workload.draw(rng)))
        moment += rng.expovariate(per_second)
    return coming


@pytest.mark.parametrize(
    ("scene", "workload", "per_second"),
    [
        pytest.param(Scene(DEMO), Workload(MIXED, (10, 60), (1, 4)), 6.0, id="a busy worker"),
        pytest.param(Scene(DEMO), Workload(MIXED, (10, 60), (1, 4)), 9.0, id="more than it can do"),
        pytest.param(
            Scene(DEMO, clients=16), Workload(MIXED, (10, 60), (1, 4)), 100.0, id="16 clients"
        ),
        pytest.param(
            Scene(DEMO, gpus=2, clients=24),
            Workload(MIXED, (10, 60), (1, 4), 3),
            100.0,
            id="two workers, 24 clients, three images each",
        ),
        pytest.param(
            Scene(GPU, gpus=2), Workload(LARGE, (10, 25), n=4), 0.8, id="large images on two GPUs"
        ),
    ],
)
def test_a_forecast_is_within_a_quarter_of_what_happens(
    scene: Scene, workload: Workload, per_second: float
) -> None:
    scene.run(requests(workload, 200, per_second))
    at_arrival, in_between = scene.errors()
    assert len(at_arrival) >= 200
    assert len(in_between) >= 20
    for errors in (at_arrival, in_between):
        assert median(abs(error) for error in errors) <= 0.25
        # And it is not always too early or always too late.
        assert abs(median(errors)) <= 0.15


@pytest.mark.parametrize(
    ("clients", "per_second"),
    [pytest.param(8, 100.0, id="clients who come back"), pytest.param(None, 9.0, id="ever more")],
)
def test_a_forecast_holds_from_the_first_seconds_of_a_load(
    clients: int | None, per_second: float
) -> None:
    scene = Scene(DEMO, clients=clients)
    scene.run(requests(Workload(MIXED, (10, 60), (1, 4), 3), 24, per_second))
    at_arrival, _ = scene.errors()
    # The first ones are told before there is any sign of the others.
    known = at_arrival[4:]
    assert median(abs(error) for error in known) <= 0.25
    assert abs(median(known)) <= 0.15


def test_those_who_come_are_taken_for_a_mixture_however_few_they_are() -> None:
    errors = []
    for seed in range(3, 9):
        scene = Scene(THREE, clients=8)
        scene.run(requests(Workload(VARIED, (10, 60), (1, 4), 3), 60, 100.0, seed))
        errors += scene.errors()[0][8:-8]
    # 0.17 if they are taken to be the latest ones, in their order.
    assert median(abs(error) for error in errors) <= 0.15
    assert abs(median(errors)) <= 0.05


def test_nobody_is_expected_to_return_where_nobody_does() -> None:
    workload, rng = Workload(VARIED, (10, 60), (1, 4), 2), random.Random(3)
    # Four at once, looked at for a while.
    bursts = [(60.0 * (i // 4), workload.draw(rng)) for i in range(80)]
    scene = Scene(THREE)
    scene.run(bursts)
    # The last one of four knows the others.
    errors = [
        told / (job.ended - moment) - 1
        for job, moment, told in scene.told
        if job.id % 4 == 3 and moment == job.arrived and job.ended is not None
    ]
    assert median(abs(error) for error in errors) <= 0.07
    # Of the first four that is not known yet.
    assert errors[0] > 0.1


@pytest.mark.parametrize(
    ("ends", "arrivals", "share"),
    [
        pytest.param([], [], 1.0, id="nothing is known"),
        pytest.param([10.0, 20.0, 30.0], [10.4, 19.8, 30.0], 1.0, id="each is followed by one"),
        pytest.param([10.0, 10.1, 10.2], [10.5], 0.5, id="one follows one, and no more"),
        pytest.param([30.0, 20.0, 10.0], [5.0, 27.0, 26.0, 35.0], 0.25, id="too late, or before"),
    ],
)
def test_who_asks_again_at_once_returns(
    ends: list[float], arrivals: list[float], share: float
) -> None:
    assert share_returning(ends, arrivals) == share


def one(job_id: str, **changes: object) -> Work:
    return replace(Work(job_id, (64, 64), 2, (10.0,)), **changes)


def ends(
    *held: Work,
    queue: tuple[Work, ...] = (),
    arrivals: tuple[Work, ...] = (),
    returning: float = 1.0,
    newcomers: int = 0,
    lanes: int = 1,
    slowness: float = 1.0,
    store_seconds: float = 0.0,
) -> list[float]:
    """When jobs end on workers that draw two rows in 1 s and four in 1.5 s."""
    size = MeasuredSize(
        width=64,
        height=64,
        max_rows=4,
        step_seconds={2: 1.0, 4: 1.5},
        decode_seconds=0.5,
        slowness=slowness,
    )
    pace = Pace([size], store_seconds)
    made = [Lane(str(i), pace, held if i == 0 else ()) for i in range(lanes)]
    situation = Situation(
        tuple(made), queue, arrivals=arrivals, returning=returning, newcomers=newcomers
    )
    return list(forecast(situation).values())


def test_company_makes_steps_longer_until_it_leaves() -> None:
    assert ends(one("a")) == pytest.approx([10.5])
    # Four steps together, the decoder, six steps alone, the decoder.
    assert ends(one("a", calls=(4.0,)), one("b")) == pytest.approx([6.5, 13.0])


def test_who_waits_begins_when_somebody_leaves() -> None:
    queue = (one("c", calls=(2.0,)),)
    assert ends(one("a"), one("b"), queue=queue) == pytest.approx([15.5, 16.0, 18.5])
    assert ends(one("a"), one("b"), queue=queue, lanes=2) == pytest.approx([2.5, 15.5, 16.0])


def test_somebody_like_those_who_came_lately_comes_for_one_who_leaves() -> None:
    held = one("a", calls=(4.0,)), one("b")
    assert ends(*held, arrivals=(one("old"),)) == pytest.approx([6.5, 16.0])
    # Two more steps of the one who came, then the decoder, and the next one comes.
    arrivals = (one("old", calls=(2.0,)),)
    assert ends(*held, arrivals=arrivals) == pytest.approx([6.5, 17.0])
    # Where fewer return, in most futures nobody does by then.
    assert ends(*held, arrivals=arrivals, returning=0.3) == pytest.approx([6.5, 13.0])


def test_who_came_since_the_look_is_not_expected_once_more() -> None:
    held, new = one("a", calls=(4.0,)), one("new")
    arrivals = (one("old"),)
    # Together for four steps, the decoder, six steps beside the one who comes back.
    assert ends(held, queue=(new,), arrivals=arrivals) == pytest.approx([6.5, 16.0])
    # That was the new one.
    assert ends(held, queue=(new,), arrivals=arrivals, newcomers=1) == pytest.approx([6.5, 13.0])


def works(*calls: float) -> st.SearchStrategy[Work]:
    return st.builds(
        Work,
        job_id=st.uuids().map(str),
        size=st.sampled_from([(64, 64), (128, 128), (96, 64)]),
        rows=st.sampled_from([1, 2]),
        calls=st.lists(st.sampled_from(calls), min_size=1, max_size=5).map(tuple),
        age=st.sampled_from([0.0, 0.3, 50.0]),
    )


@given(
    st.lists(st.lists(works(0.0, 0.5, 1.0, 40.0), max_size=5), min_size=1, max_size=3),
    st.lists(works(1.0, 7.0, 40.0), max_size=8),
    st.lists(works(1.0, 7.0, 40.0), max_size=4),
    st.sampled_from([0.0, 0.2, 50.0]),
)
@settings(deadline=None)
def test_every_job_has_an_end(
    held: list[list[Work]], queue: list[Work], arrivals: list[Work], rate: float
) -> None:
    size = MeasuredSize(width=64, height=64, max_rows=6, step_seconds={2: 1.0}, decode_seconds=0.5)
    lanes = [Lane(str(i), Pace([size], 0.25), tuple(some)) for i, some in enumerate(held)]
    told = forecast(Situation(tuple(lanes), tuple(queue), rate, tuple(arrivals)))
    assert set(told) == {work.job_id for work in [*queue, *(w for some in held for w in some)]}
    assert all(0.25 <= end < float("inf") for end in told.values())


def test_a_slow_worker_takes_longer_and_so_does_a_slow_store() -> None:
    assert ends(one("a"), slowness=2.0, store_seconds=3.0) == pytest.approx([24.0])


def test_the_step_under_way_is_counted() -> None:
    assert ends(one("a", calls=(5.0,), age=0.25)) == pytest.approx([5.25])
    # A worker that says nothing for long is not thought to have done wonders.
    assert ends(one("a", calls=(5.0,), age=60.0)) == pytest.approx([4.5])


def test_two_sizes_take_turns_in_equal_shares_of_the_time() -> None:
    # The larger one is derived: four times the pixels.
    large = one("b", size=(128, 128), calls=(100.0,))
    [small, _] = ends(one("a"), large)
    assert small == pytest.approx(20.5)


@pytest.mark.parametrize(("scheduler", "calls"), [("euler", 10), ("heun", 20), ("dpm2", 20)])
def test_schedulers_that_call_the_model_twice_a_step_take_twice_as_long(
    scheduler: str, calls: int
) -> None:
    work = Work.of("a", spec(scheduler=scheduler, n=3))
    assert (work.calls, work.rows) == ((calls,) * 3, 2)
    assert work.after((0.25, 1.0, 0.0), age=1.0).calls == (0.75 * calls, calls)
    # Its last image is being decoded.
    assert work.after((1.0, 1.0, 1.0), age=1.0).calls == (0.0,)


def test_nothing_is_foretold_where_nobody_works() -> None:
    assert forecast(Situation((), (one("a"),))) == {}
