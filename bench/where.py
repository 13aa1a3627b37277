"""Where the time goes under load: the worker's loop by phases, each process's CPU time."""

import asyncio
import os
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import httpx

from bench.load import Pace, closed_loop
from bench.scrape import totals
from bench.servers import Koala
from bench.tables import Table
from bench.workloads import Workload, requests

_PHASES: Final = "koala_loop_seconds_total"
_SETTLE_SECONDS: Final = 2.0
# Within it the clients have arrived and had their first answers.
_LEAD_SECONDS: Final = 6.0
_TICKS_PER_SECOND: Final = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class _Look:
    """Totals at one moment: seconds on the clock, CPU seconds by process, the worker's metrics."""

    clock: float
    cpu: Mapping[str, float]
    metrics: Mapping[tuple[str, str], float]


@dataclass(frozen=True, slots=True)
class Where:
    """What a stretch of steady load was spent on.

    Args:
        seconds: Its length.
        images: Images drawn in it.
        rows_per_call: Mean rows of a U-Net call.
        phases: Seconds of the worker's loop in each phase.
        cpu: CPU seconds of each process.
    """

    seconds: float
    images: int
    rows_per_call: float
    phases: Mapping[str, float]
    cpu: Mapping[str, float]

    @property
    def tables(self) -> list[Table]:
        """The loop by phases, largest first, and the processes."""
        loop = sorted(self.phases.items(), key=lambda item: item[1], reverse=True)
        return [
            Table(
                f"The worker's loop, {self.images} images at {self.images / self.seconds:.1f} per "
                f"second, {self.rows_per_call:.1f} rows a call",
                ("phase", "of the time", "ms per image"),
                [
                    (name, f"{spent / self.seconds:.1%}", f"{self._per_image(spent):.2f}")
                    for name, spent in loop
                ],
            ),
            Table(
                "CPU time",
                ("process", "ms per image"),
                [(name, f"{self._per_image(spent):.2f}") for name, spent in self.cpu.items()],
            ),
        ]

    def _per_image(self, seconds: float) -> float:
        return 1000 * seconds / max(1, self.images)


def measure(workload: Workload, clients: int, seconds: float, threads: int) -> Where:
    """Look at our own service under a closed loop.

    Args:
        workload: What is asked for.
        clients: How many ask.
        seconds: How long to look.
        threads: CPU threads of the worker's torch.

    Raises:
        ContenderFailed: The service does not start.
    """
    with tempfile.TemporaryDirectory() as folder:
        service = Koala(Path(folder), threads)
        try:
            service.wait_until_ready()
            before, after = asyncio.run(_load(service, workload, clients, seconds))
        finally:
            service.stop()
    spent = {key: after.metrics[key] - before.metrics.get(key, 0.0) for key in after.metrics}
    return Where(
        seconds=after.clock - before.clock,
        images=round(sum(n for (name, _), n in spent.items() if name == "koala_images_total")),
        rows_per_call=spent["koala_batch_rows_sum", ""] / spent["koala_batch_rows_count", ""],
        phases={label: value for (name, label), value in spent.items() if name == _PHASES},
        cpu={name: after.cpu[name] - before.cpu[name] for name in after.cpu},
    )


async def _load(
    service: Koala, workload: Workload, clients: int, seconds: float
) -> tuple[_Look, _Look]:
    lasting = _LEAD_SECONDS + seconds
    pace = Pace(settle=_SETTLE_SECONDS, window=lasting, longest_window=lasting)
    load = closed_loop(service.address, requests(workload, 0), [clients], pace)
    running = asyncio.create_task(load)
    await asyncio.sleep(_LEAD_SECONDS)
    before = await _look(service)
    await asyncio.sleep(seconds)
    after = await _look(service)
    await running
    return before, after


async def _look(service: Koala) -> _Look:
    async with httpx.AsyncClient(trust_env=False) as http:
        text = (await http.get(service.metrics_url)).raise_for_status().text
    cpu = {name: _cpu_seconds(pid) for name, pid in service.pids.items()}
    return _Look(time.monotonic(), cpu | {"load generator": time.process_time()}, totals(text))


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    user, system = int(fields[11]), int(fields[12])
    return (user + system) / _TICKS_PER_SECOND
