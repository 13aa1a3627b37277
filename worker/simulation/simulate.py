"""The virtual clock: arrivals, workers on one queue, answers."""

import heapq
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count

from worker.simulation.device import Device
from worker.simulation.gpu import SimulatedWorker, Strategy, Tick
from worker.simulation.workload import Clients, Job, Load, Shape, Workload

# At one moment answers and arrivals come before workers look into the queue.
_NEWS, _TURN = 0, 1


@dataclass(slots=True)
class Trace:
    """What happened.

    Args:
        jobs: All requests in the order of their arrival; all have ended.
        ticks: All ticks of all workers.
        gpus: Number of workers.
    """

    jobs: list[Job] = field(default_factory=list)
    ticks: list[Tick] = field(default_factory=list)
    gpus: int = 1


def simulate(
    device: Device,
    workload: Workload,
    load: Load,
    strategy: Strategy = Strategy.STEP_LEVEL,
    *,
    gpus: int = 1,
    requests: int = 400,
    seed: int = 0,
) -> Trace:
    """Send ``requests`` requests and run until the last one is answered.

    The same seed gives the same requests, and the same gaps between them, to every strategy.

    Args:
        device: Every GPU.
        workload: What is asked for.
        load: When.
        strategy: When workers take requests.
        gpus: Workers, one per GPU, on one queue.
        requests: Number of requests.
        seed: Of requests and gaps.
    """
    return _Simulation(device, workload, load, strategy, gpus, requests, seed).run()


class _Simulation:
    def __init__(
        self,
        device: Device,
        workload: Workload,
        load: Load,
        strategy: Strategy,
        gpus: int,
        requests: int,
        seed: int,
    ) -> None:
        rng = random.Random(f"{seed} requests")
        shapes = [workload.draw(rng) for _ in range(requests)]
        self._shapes = deque(shapes)
        self._is_closed = isinstance(load, Clients)
        self._queue: deque[Job] = deque()
        # The one that has waited longest is served first, as by a blocking pop.
        self._idle = deque(SimulatedWorker(device, strategy) for _ in range(gpus))
        self._agenda: list[tuple[float, int, int, Callable[[float], None]]] = []
        self._order = count()
        self._trace = Trace(gpus=gpus)
        for moment in _arrivals(load, shapes, device, random.Random(f"{seed} gaps")):
            self._at(moment, _NEWS, self._arrive)

    def run(self) -> Trace:
        while self._agenda:
            now, _, _, happen = heapq.heappop(self._agenda)
            happen(now)
        return self._trace

    def _at(self, moment: float, rank: int, happen: Callable[[float], None]) -> None:
        heapq.heappush(self._agenda, (moment, rank, next(self._order), happen))

    def _arrive(self, now: float) -> None:
        if not self._shapes:
            return
        job = Job(len(self._trace.jobs), self._shapes.popleft(), now)
        self._trace.jobs.append(job)
        self._queue.append(job)
        if self._idle:
            self._give_turn(self._idle.popleft(), now)

    def _give_turn(self, worker: SimulatedWorker, now: float) -> None:
        self._at(now, _TURN, lambda now: self._turn(worker, now))

    def _turn(self, worker: SimulatedWorker, now: float) -> None:
        worker.take(self._queue, now)
        if worker.is_idle:
            self._idle.append(worker)
            return
        tick = worker.tick(now)
        self._trace.ticks.append(tick)
        self._at(tick.ended, _NEWS, lambda now: self._end(worker, tick, now))

    def _end(self, worker: SimulatedWorker, tick: Tick, now: float) -> None:
        for sample in tick.decoded:
            sample.job.images_left -= 1
            if not sample.job.images_left:
                sample.job.ended = now
                if self._is_closed:
                    self._at(now, _NEWS, self._arrive)
        self._give_turn(worker, now)


def _arrivals(load: Load, shapes: list[Shape], device: Device, rng: random.Random) -> list[float]:
    """When requests arrive; of a closed loop, when each client sends its first one."""
    if isinstance(load, Clients):
        first = shapes[0]
        alone = first.steps * device.step_seconds(first.size, first.rows)
        return [0.0, *(rng.uniform(0, alone) for _ in range(load.count - 1))]
    moments, now = [], 0.0
    for _ in shapes:
        moments.append(now)
        now += rng.expovariate(load.per_minute / 60)
    return moments
