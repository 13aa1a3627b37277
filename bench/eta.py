"""ETAs against what came: the whole service under load, mixed jobs."""

import random
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx

from bench.benchmark import CannotMeasure
from bench.servers import Koala

_GENERATIONS: Final = "/v1/images/generations"
_SIZES: Final = ("64x64", "96x96", "128x128")
# A row of a call takes so long on two cores; quicker machines are given more to do.
_ROW_SECONDS: Final = 0.0033
_LOOK_SECONDS: Final = 0.3


@dataclass(frozen=True, slots=True)
class EtaErrors:
    """Relative errors of ETAs, 0.25 for a quarter too long, by when they were told."""

    at_admission: list[float]
    half_way: list[float]


class _Clock:
    """Seconds of the worker, which are longer while others use the machine.

    What a machine will do is not foretold; what the worker will do in its own time is.
    """

    def __init__(self, http: httpx.Client) -> None:
        self._http = http
        self.slowness = 1.0
        self._ticks: list[tuple[float, float]] = [(time.monotonic(), 0.0)]

    def tick(self) -> None:
        """Ask how slow the worker is."""
        now = time.monotonic()
        before, passed = self._ticks[-1]
        self._ticks.append((now, passed + (now - before) / self.slowness))
        self.slowness = float(_worker(self._http)["slowness"])

    def at(self, moment: float) -> float:
        """What it showed at ``moment`` of the real one."""
        before = max(tick for tick in self._ticks if tick[0] <= moment)
        after = min((tick for tick in self._ticks if tick[0] > moment), default=None)
        if after is None:
            return before[1] + (moment - before[0]) / self.slowness
        return before[1] + (after[1] - before[1]) * (moment - before[0]) / (after[0] - before[0])


@dataclass
class _Told:
    """A job, and the ETAs told of it: when, and in seconds of the worker."""

    id: str
    submitted_at: float
    etas: list[tuple[float, float]] = field(default_factory=list)
    ended_at: float = 0.0

    def error(self, share: float, clock: _Clock, shortest: float) -> float | None:
        """The relative error of the ETA told after a share of its life.

        ``None``: less than ``shortest`` seconds were left.
        """
        moment = self.submitted_at + share * (self.ended_at - self.submitted_at)
        told_at, own_eta = min(self.etas, key=lambda told: abs(told[0] - moment))
        if self.ended_at - told_at <= shortest:
            return None
        left: float = clock.at(self.ended_at) - clock.at(told_at)
        return own_eta / left - 1


def measure(rounds: int, jobs: int, clients: int, shortest: float, threads: int) -> EtaErrors:
    """Load one service in rounds.

    Args:
        rounds: How often ``jobs`` are drawn.
        jobs: Jobs of a round; the first and the last ``clients`` of them do not count.
        clients: How many jobs there are at any time.
        shortest: An ETA does not count where the job ended fewer seconds later.
        threads: CPU threads of the worker's torch.

    Raises:
        ContenderFailed: The service does not start.
        CannotMeasure: No job lasted long enough.
        httpx.HTTPError: It does not answer.
    """
    at_admission: list[float] = []
    half_way: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        service = Koala(Path(folder), threads)
        try:
            service.wait_until_ready()
            with httpx.Client(base_url=service.address.base_url, timeout=60) as http:
                for size in _SIZES:
                    # A worker measures each size when it first comes, and everybody waits.
                    body = {"prompt": "a koala", "size": size}
                    http.post(_GENERATIONS, json=body).raise_for_status()
                for number in range(rounds):
                    told, clock = _round(http, random.Random(number), jobs, clients)
                    at_admission += _errors(told, 0.0, clock, shortest)
                    half_way += _errors(told, 0.5, clock, shortest)
        finally:
            service.stop()
    if not at_admission or not half_way:
        raise CannotMeasure(f"no job lasted for {shortest:g} s")
    return EtaErrors(at_admission, half_way)


def _worker(http: httpx.Client) -> dict[str, Any]:
    [worker] = http.get("/v1/admin/workers").raise_for_status().json()["data"]
    return dict(worker)


def _steps_factor(http: httpx.Client) -> float:
    """How many times as many steps make a job last for seconds on this machine; at least 1."""
    calls = _worker(http)["sizes"][0]["step_seconds"]
    row_seconds: float = min(t / int(rows) for rows, t in calls.items())
    return min(4.0, max(1.0, _ROW_SECONDS / row_seconds))


def _request(rng: random.Random, factor: float) -> dict[str, Any]:
    """A request: sizes, steps, guidance, schedulers and numbers of images mixed."""
    return {
        "prompt": "a koala",
        "size": rng.choice([_SIZES[0], *_SIZES]),
        "num_inference_steps": round(rng.randint(10, 22) * factor),
        "guidance_scale": rng.choice([1.0, 3.5, 3.5]),
        "scheduler": rng.choice(["euler", "heun", "dpm2", "dpm++_2m"]),
        "n": rng.randint(1, 3),
        "seed": 7,
    }


def _round(
    http: httpx.Client, rng: random.Random, jobs: int, clients: int
) -> tuple[Sequence[_Told], _Clock]:
    """The jobs of a closed loop that count, and the worker's clock."""
    under_way: dict[str, _Told] = {}
    ended: list[_Told] = []
    clock = _Clock(http)
    factor = _steps_factor(http)

    def submit() -> None:
        began = time.monotonic()
        headers = {"Prefer": "respond-async"}
        answer = http.post(_GENERATIONS, json=_request(rng, factor), headers=headers)
        job = answer.raise_for_status().json()
        under_way[job["id"]] = _Told(job["id"], began)
        note(under_way[job["id"]], job, began)

    def note(told: _Told, job: dict[str, Any], now: float) -> None:
        # A job that ends just now has none.
        if job["eta_seconds"] is not None:
            told.etas.append((now, job["eta_seconds"] / clock.slowness))

    clock.tick()
    for _ in range(clients):
        submit()
    while under_way:
        clock.tick()
        for told in list(under_way.values()):
            now = time.monotonic()
            job = http.get(f"/v1/jobs/{told.id}").raise_for_status().json()
            if job["status"] in ("queued", "in_progress"):
                note(told, job, now)
                continue
            told.ended_at = told.submitted_at + job["result"]["timings"]["total_seconds"]
            ended.append(under_way.pop(told.id))
            if len(ended) + len(under_way) < jobs:
                submit()
        time.sleep(_LOOK_SECONDS)
    # The first ones cannot know how many will follow, nor the last ones that none will.
    return sorted(ended, key=lambda told: told.submitted_at)[clients:-clients], clock


def _errors(jobs: Sequence[_Told], share: float, clock: _Clock, shortest: float) -> list[float]:
    """The errors of what was told after a share of the jobs' lives."""
    each = [job.error(share, clock, shortest) for job in jobs if job.etas]
    return [error for error in each if error is not None]
