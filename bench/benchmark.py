"""One benchmark from start to end: contenders up, rounds, results."""

import platform
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Final

from bench.contenders import Contender
from bench.processes import environment
from bench.raw_process import RawLimit, raw_limit
from bench.results import Results
from bench.rounds import Plan, Rounds
from bench.servers import Koala, Server, start
from bench.summary import at_saturation, middle
from bench.workloads import Workload
from koala import __version__, processors

# Poisson arrivals come at this share of our own saturation.
LOAD: Final = 0.7


class CannotMeasure(Exception):
    """What was asked for cannot be measured; the message says what is missing."""


def run(
    plan: Plan,
    workloads: Sequence[Workload],
    contenders: Sequence[Contender],
    *,
    threads: int,
    rows: int | None,
    rate: float | None,
    say: Callable[[str], None],
) -> Results:
    """Measure ``contenders`` side by side.

    Args:
        plan: How much.
        workloads: Which workloads.
        contenders: Who.
        threads: CPU threads of every contender's torch.
        rows: Row cap of all batches; ``None`` lets our worker choose, and all take what it chose.
        rate: Poisson arrivals per second; ``None`` takes 70 % of our own saturation.
        say: Told what is going on.

    Raises:
        CannotMeasure: ``rate`` is missing and we are not among the contenders.
        ContenderFailed: One did not start, or went away.
    """
    if rate is None and Contender.OURS not in contenders:
        raise CannotMeasure("without koala-serve among the contenders, --rate has to be given")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        servers: dict[Contender, Server] = {}
        for contender in Contender:
            if contender in contenders and contender is not Contender.RAW:
                say(f"starting {contender.label}")
                servers[contender] = _start(stack, contender, folder, threads, rows)
                rows = rows or _chosen_rows(servers[contender])
        raw: RawLimit | None = None
        if Contender.RAW in contenders:
            say("measuring the curve of the raw limit")
            raw = stack.enter_context(raw_limit(threads))
        rounds = Rounds(plan, workloads, servers, raw, say)
        rounds.warm_up()
        rounds.saturate()
        results = Results(
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            version=__version__,
            machine=_machine(),
            torch_threads=threads,
            batch_rows=rows,
            rounds=plan.rounds,
            curve=raw.curve if raw else [],
            raw=rounds.raw_runs,
            runs=rounds.runs,
            idle=rounds.idle_runs,
        )
        rounds.arrive({workload: rate or _rate(results, workload) for workload in workloads})
        return results.model_copy(update={"runs": rounds.runs})


def _start(
    stack: ExitStack, contender: Contender, folder: Path, threads: int, rows: int | None
) -> Server:
    # One after the other: a worker of ours measures the machine while it starts.
    server = start(contender, folder / contender, threads, rows)
    stack.callback(server.stop)
    server.wait_until_ready()
    server.pause()
    return server


def _chosen_rows(server: Server) -> int | None:
    return server.batch_rows if isinstance(server, Koala) else None


def _rate(results: Results, workload: Workload) -> float:
    runs = at_saturation(results, Contender.OURS, workload)
    saturation = middle(run.images_per_second for run in runs)
    if not saturation:
        raise CannotMeasure(f"koala-serve drew nothing of {workload}: there is no rate to take")
    return LOAD * saturation


def _machine() -> dict[str, str]:
    return {
        "cpu": _cpu_name(),
        "cores": str(processors.available()),
        # How torch's threads wait for each other: spinning or asleep, which a full machine feels.
        "OMP_WAIT_POLICY": environment()["OMP_WAIT_POLICY"],
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "diffusers", "rq")},
    }


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
