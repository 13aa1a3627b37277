"""A plan: what to simulate, and what came of it."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Final

from worker.simulation.device import Device
from worker.simulation.gpu import Strategy
from worker.simulation.report import Summary, summarize
from worker.simulation.simulate import simulate
from worker.simulation.workload import Load, Poisson, Workload

# Drawing less than this part of what is asked for, a GPU that is always busy falls behind.
_KEEPS_UP: Final = 0.95


@dataclass(frozen=True)
class Plan:
    """A sweep: every strategy under every load.

    Args:
        device: Every GPU.
        workload: What is asked for.
        loads: How often; all closed loops or all Poisson.
        strategies: Side by side.
        gpus: Number of GPUs.
        requests: Requests of each simulation.
        seed: Of requests and gaps.
    """

    device: Device
    workload: Workload
    loads: tuple[Load, ...]
    strategies: tuple[Strategy, ...] = tuple(Strategy)
    gpus: int = 1
    requests: int = 400
    seed: int = 0

    def run(self) -> "Iterator[Point]":
        """Simulate, one point after the other."""
        for load in self.loads:
            for strategy in self.strategies:
                trace = simulate(
                    self.device,
                    self.workload,
                    load,
                    strategy,
                    gpus=self.gpus,
                    requests=self.requests,
                    seed=self.seed,
                )
                yield Point(load, strategy, summarize(trace), self._offered(load))

    def _offered(self, load: Load) -> float | None:
        return load.per_minute * self.workload.n if isinstance(load, Poisson) else None


@dataclass(frozen=True, slots=True)
class Point:
    """One simulation of a plan.

    Args:
        load: Its load.
        strategy: Its strategy.
        summary: Its figures.
        offered: Images a minute that were asked for; ``None`` in a closed loop.
    """

    load: Load
    strategy: Strategy
    summary: Summary
    offered: float | None

    @property
    def is_overloaded(self) -> bool:
        """Whether more was asked for than can be drawn, so that waits grow without end."""
        if self.offered is None:
            return False
        figures = self.summary
        return figures.images_per_minute < _KEEPS_UP * self.offered and figures.busy_share > 0.99


def as_json(plan: Plan, points: list[Point]) -> dict[str, Any]:
    """Plan and figures for other programs; times in seconds."""
    return {
        "device": plan.device.name,
        "assumptions": list(plan.device.assumptions),
        "gpus": plan.gpus,
        "requests": plan.requests,
        "seed": plan.seed,
        "workload": {
            "sizes": {f"{w}x{h}": weight for (w, h), weight in plan.workload.sizes.items()},
            "num_inference_steps": list(plan.workload.steps),
            "guidance_scale": list(plan.workload.guidance_scale),
            "n": plan.workload.n,
        },
        "max_rows": {f"{w}x{h}": plan.device.cap((w, h)) for w, h in plan.workload.sizes},
        "points": [
            {
                "load": asdict(point.load),
                "strategy": point.strategy,
                "is_overloaded": point.is_overloaded,
                **asdict(point.summary),
            }
            for point in points
        ],
    }
