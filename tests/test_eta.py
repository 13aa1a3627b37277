"""ETAs against what came, under load: the real worker, the demo model, mixed jobs."""

import random
import time
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import httpx

from tests.support import Stack

GENERATIONS = "/v1/images/generations"
JOBS = 56
CLIENTS = 18
SIZES = ["64x64", "96x96", "128x128"]
# A row of a call takes so long on two cores; quicker machines are given more to do.
ROW_SECONDS = 0.0033
# Nobody reads the ETA of what ends sooner.
SHORTEST_SECONDS = 2.0
# What ETAs may be off by, as a part of the time that was left.
MOST_ERROR = 0.25


class Clock:
    """Seconds of the worker, which are longer while others use the machine.

    What a machine will do is not foretold; what the worker will do in its own time is.
    """

    def __init__(self, http: httpx.Client) -> None:
        self._http = http
        self.slowness = 1.0
        self._ticks = [(time.monotonic(), 0.0)]

    def tick(self) -> None:
        """Ask how slow the worker is."""
        now = time.monotonic()
        before, passed = self._ticks[-1]
        self._ticks.append((now, passed + (now - before) / self.slowness))
        [worker] = self._http.get("/v1/admin/workers").json()["data"]
        self.slowness = worker["slowness"]

    def at(self, moment: float) -> float:
        """What it showed at ``moment`` of the real one."""
        before = max(tick for tick in self._ticks if tick[0] <= moment)
        after = min(tick for tick in [*self._ticks, (float("inf"), 0.0)] if tick[0] > moment)
        if after[0] == float("inf"):
            return before[1] + (moment - before[0]) / self.slowness
        return before[1] + (after[1] - before[1]) * (moment - before[0]) / (after[0] - before[0])


@dataclass
class Told:
    """A job, and the ETAs told of it: when, and in seconds of the worker."""

    id: str
    submitted_at: float
    etas: list[tuple[float, float]] = field(default_factory=list)
    ended_at: float = 0.0

    def error(self, share: float, clock: Clock) -> float | None:
        """The relative error of the ETA told after a share of its life; ``None``: too short."""
        moment = self.submitted_at + share * (self.ended_at - self.submitted_at)
        told_at, own_eta = min(self.etas, key=lambda told: abs(told[0] - moment))
        if self.ended_at - told_at < SHORTEST_SECONDS:
            return None
        left = clock.at(self.ended_at) - clock.at(told_at)
        return own_eta / left - 1


def steps_factor(http: httpx.Client) -> float:
    """How many times as many steps make a job last for seconds on this machine; at least 1."""
    [worker] = http.get("/v1/admin/workers").json()["data"]
    calls = worker["sizes"][0]["step_seconds"]
    return min(4.0, max(1.0, ROW_SECONDS / min(t / int(rows) for rows, t in calls.items())))


def shape(rng: random.Random, factor: float) -> dict[str, Any]:
    """A request: sizes, steps, guidance, schedulers and numbers of images mixed."""
    return {
        "prompt": "a koala",
        "size": rng.choice(SIZES[:1] + SIZES),
        "num_inference_steps": round(rng.randint(10, 22) * factor),
        "guidance_scale": rng.choice([1.0, 3.5, 3.5]),
        "scheduler": rng.choice(["euler", "heun", "dpm2", "dpm++_2m"]),
        "n": rng.randint(1, 3),
        "seed": 7,
    }


def test_etas_under_load_are_within_a_quarter_of_the_truth(stack: Stack) -> None:
    with httpx.Client(base_url=stack.base_url, timeout=60) as http:
        for size in SIZES:
            # A worker measures each size when it first comes, and everybody waits.
            response = http.post(GENERATIONS, json={"prompt": "a koala", "size": size})
            assert response.is_success, response.text
    measured = [errors(stack)]
    if median_error(measured[0]) > MOST_ERROR:
        # Another process took the cores in the middle of it, which nobody can foretell.
        measured.append(errors(stack))
    assert median_error(measured[-1]) <= MOST_ERROR, measured


def errors(stack: Stack) -> tuple[list[float], list[float]]:
    """Of the ETAs told at admission, and in the middle of each job's life."""
    rng = random.Random(5)
    under_way: dict[str, Told] = {}
    ended: list[Told] = []
    states = set()
    ending: set[str] = set()
    with httpx.Client(base_url=stack.base_url, timeout=60) as http:
        clock = Clock(http)
        factor = steps_factor(http)

        def submit() -> None:
            began = time.monotonic()
            headers = {"Prefer": "respond-async"}
            job = http.post(GENERATIONS, json=shape(rng, factor), headers=headers).json()
            under_way[job["id"]] = Told(job["id"], began)
            note(under_way[job["id"]], job, began)

        def note(told: Told, job: dict[str, Any], now: float) -> None:
            assert told.id not in ending, job
            states.add(job["status"])
            if job["eta_seconds"] is None:
                # It ended between the look at it and the look at its worker.
                ending.add(told.id)
            else:
                told.etas.append((now, job["eta_seconds"] / clock.slowness))

        clock.tick()
        for _ in range(CLIENTS):
            submit()
        while under_way:
            clock.tick()
            for told in list(under_way.values()):
                now = time.monotonic()
                job = http.get(f"/v1/jobs/{told.id}").json()
                if job["status"] in ("queued", "in_progress"):
                    note(told, job, now)
                    continue
                assert job["status"] == "completed", job
                told.ended_at = told.submitted_at + job["result"]["timings"]["total_seconds"]
                ended.append(under_way.pop(told.id))
                if len(ended) + len(under_way) < JOBS:
                    submit()
            time.sleep(0.3)

    assert states == {"queued", "in_progress"}
    # The first ones cannot know how many will follow, nor the last ones that none will.
    steady = sorted(ended, key=lambda told: told.submitted_at)[CLIENTS:-CLIENTS]
    return known_errors(steady, 0.0, clock), known_errors(steady, 0.5, clock)


def known_errors(jobs: list[Told], share: float, clock: Clock) -> list[float]:
    """The errors of what was told after a share of the jobs' lives."""
    each = [told.error(share, clock) for told in jobs]
    known = [round(error, 2) for error in each if error is not None]
    assert len(known) >= 8, each
    return known


def median_error(measured: tuple[list[float], list[float]]) -> float:
    """The larger of the two medians."""
    return max(median(abs(error) for error in errors) for errors in measured)
