"""Takes the contenders through their loads, round by round, so that a noisy minute hits all."""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Final, Self

from bench.contenders import Contender
from bench.load import Address, Pace, closed_loop, one_by_one, open_loop
from bench.raw_process import RawLimit
from bench.records import closed_run, poisson_run
from bench.results import IdleRun, RawRun, Run
from bench.servers import Server
from bench.workloads import Workload, arrivals, requests

# Those of whom the aims compare single requests.
_IDLE: Final = (Contender.OURS, Contender.LOCK)
# Seeds of warm-ups lie outside the rounds' seeds.
_WARM_UP_SEED: Final = -1


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured. Times are in seconds.

    Args:
        rounds: Repetitions of everything; figures are medians over them.
        levels: Numbers of clients in the closed loops, ascending.
        pace: Of the closed loops.
        raw_images: Images of one pass of the raw loop.
        poisson_seconds: Length of the arrivals.
        patience: How long after the last arrival answers still count.
        idle_requests: Single requests per round to idle contenders.
        warm_up_requests: Requests to each contender before anything counts.
    """

    rounds: int = 3
    levels: tuple[int, ...] = (1, 8, 16, 32)
    pace: Pace = field(default_factory=Pace)
    raw_images: int = 54
    poisson_seconds: float = 10.0
    patience: float = 5.0
    idle_requests: int = 8
    warm_up_requests: int = 20


QUICK: Final = Plan(
    rounds=1,
    levels=(1, 4),
    pace=Pace(settle=0.3, window=0.7, longest_window=30.0),
    raw_images=4,
    poisson_seconds=1.5,
    patience=30.0,
    idle_requests=2,
    warm_up_requests=2,
)


class Rounds:
    """All runs of one benchmark.

    Args:
        plan: How much.
        workloads: Which workloads.
        servers: The contenders that take requests, by name; they are ready.
        raw: The raw limit, if it takes part.
        say: Told of each run as it begins.
    """

    def __init__(
        self,
        plan: Plan,
        workloads: Sequence[Workload],
        servers: Mapping[Contender, Server],
        raw: RawLimit | None,
        say: Callable[[str], None],
    ) -> None:
        self.raw_runs: list[RawRun] = []
        self.runs: list[Run] = []
        self.idle_runs: list[IdleRun] = []
        self._plan = plan
        self._workloads = workloads
        self._servers = servers
        self._raw = raw
        self._say = say

    def warm_up(self) -> None:
        """Let each contender meet its first requests, mixed ones, four at a time."""
        for server in self._servers.values():
            stream = requests(Workload.MIXED, _WARM_UP_SEED)
            times = [0.2 * (i // 4) for i in range(self._plan.warm_up_requests)]
            with server.awake() as address:
                asyncio.run(open_loop(address, stream, times, patience=0))

    def saturate(self) -> None:
        """The closed loops, the raw loop beside them, and the idle contenders."""
        for number in range(self._plan.rounds):
            for workload in self._workloads:
                self._run_raw(workload, number)
                for contender, server in self._servers.items():
                    self._say(f"round {number + 1}: {workload}, closed loop, {contender.label}")
                    with server.awake() as address:
                        self.runs += self._closed(contender, address, workload, number)
            self._run_idle(number)

    def arrive(self, rates: Mapping[Workload, float]) -> None:
        """Poisson arrivals at ``rates`` (per second), the same ones for all contenders."""
        for number in range(self._plan.rounds):
            for workload in self._workloads:
                for contender, server in self._servers.items():
                    self._say(f"round {number + 1}: {workload}, Poisson, {contender.label}")
                    with server.awake() as address:
                        run = self._poisson(contender, address, workload, number, rates[workload])
                    self.runs.append(run)

    def _run_raw(self, workload: Workload, number: int) -> None:
        if self._raw is None:
            return
        self._say(f"round {number + 1}: {workload}, raw loop")
        images = self._plan.raw_images
        stream = requests(workload, number)
        rows = sum(next(stream).unet_rows for _ in range(images))
        self.raw_runs.append(
            RawRun(
                workload=workload,
                round=number,
                seconds=self._raw.seconds(images, rows),
                images=images,
                unet_rows=rows,
            )
        )

    def _closed(
        self, contender: Contender, address: Address, workload: Workload, number: int
    ) -> list[Run]:
        with _CpuShare() as cpu:
            windows = asyncio.run(
                closed_loop(address, requests(workload, number), self._plan.levels, self._plan.pace)
            )
        return [closed_run(contender, workload, number, window, cpu.share) for window in windows]

    def _poisson(
        self, contender: Contender, address: Address, workload: Workload, number: int, rate: float
    ) -> Run:
        times = arrivals(rate, self._plan.poisson_seconds, number)
        with _CpuShare() as cpu:
            run = asyncio.run(
                open_loop(address, requests(workload, number), times, self._plan.patience)
            )
        return poisson_run(contender, workload, number, rate, run, cpu.share)

    def _run_idle(self, number: int) -> None:
        servers = {name: server for name, server in self._servers.items() if name in _IDLE}
        self._say(f"round {number + 1}: single requests")
        with ExitStack() as stack:
            addresses = {
                name: stack.enter_context(server.awake()) for name, server in servers.items()
            }
            stream = requests(Workload.UNIFORM, number)
            latencies = one_by_one(addresses, stream, self._plan.idle_requests)
        self.idle_runs += [
            IdleRun(contender=name, round=number, latencies=seconds)
            for name, seconds in latencies.items()
        ]


class _CpuShare:
    """The share of one core that this process took within the block."""

    share = 0.0

    def __enter__(self) -> Self:
        self._cpu, self._began = time.process_time(), time.monotonic()
        return self

    def __exit__(self, *_: object) -> None:
        self.share = (time.process_time() - self._cpu) / (time.monotonic() - self._began)
