"""Where the time of the worker's loop goes, as a metric."""

import pytest
from prometheus_client import CollectorRegistry, Counter

from tests.worker.rig import Rig
from worker.engine import Tick
from worker.loop_clock import PHASES, LoopClock


def test_each_moment_counts_for_one_phase(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([0.0, 10.0, 13.0, 23.0, 24.0])
    monkeypatch.setattr("worker.loop_clock.time.perf_counter", lambda: next(now))
    registry = CollectorRegistry()
    clock = LoopClock(Counter("seconds", "Seconds.", ["phase"], registry=registry))

    clock.start()
    clock.lap("admission")
    clock.lap_tick(Tick(encode_seconds=1.0, unet_seconds=6.0, decode_seconds=2.0))
    clock.lap("telling")

    spent = {p: registry.get_sample_value("seconds_total", {"phase": p}) for p in PHASES}
    assert {phase: seconds for phase, seconds in spent.items() if seconds} == {
        "admission": 3.0,
        "encode": 1.0,
        "unet": 6.0,
        "decode": 2.0,
        "engine": 1.0,
        "telling": 1.0,
    }


def test_a_worker_counts_only_while_jobs_are_in_flight(rig: Rig) -> None:
    def spent() -> float:
        values = (
            rig.metrics.registry.get_sample_value("koala_loop_seconds_total", {"phase": phase})
            for phase in PHASES
        )
        return sum(value or 0.0 for value in values)

    rig.work()
    assert spent() == 0
    rig.submit()
    rig.work()
    assert spent() > 0
