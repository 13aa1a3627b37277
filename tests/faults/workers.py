"""Worker processes that start in a second, some of them made to die at a chosen point.

They are forked from a process that has imported torch already: importing takes ten times as long as
all the rest of a start, and tests that kill workers start many. From the fork on each is a worker
like any other, with the demo model, signal handlers and threads of its own.
"""

import ctypes
import multiprocessing
import os
import signal
import sys
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Final

from koala.settings import Settings

# What a prompt says that kills whoever draws it, where the worker dies of poison.
POISON: Final = "poison"

# What a prompt says for which there is no memory, where the worker is short of it.
HUGE: Final = "huge"

_PR_SET_PDEATHSIG: Final = 1
_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload(["worker.run"])


def start(
    settings: Settings, log: Path, death: str = "", file_limit: int | None = None
) -> ForkServerProcess:
    """Start a worker; it can be signalled and waited for.

    Args:
        settings: The worker's.
        log: File that its log is added to.
        death: ``popped``: it kills itself once it has popped a job and before it has claimed it;
            ``poison``: when the engine gets a prompt with POISON in it; ``short``: it lives, and
            memory runs out for each prompt with HUGE in it. Otherwise it lives.
        file_limit: Most bytes of a file that it can write.
    """
    process = _forks.Process(target=_work, args=(settings, log, death, file_limit), daemon=True)
    process.start()
    return process


def _work(settings: Settings, log: Path, death: str, file_limit: int | None) -> None:
    # Nobody is left behind, whatever happens to the tests.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    from koala import logs
    from worker.run import run

    logs.configure(settings)
    _prepare(death)
    if file_limit is not None:
        limit_files(file_limit)
    sys.exit(run(settings))


def limit_files(most: int) -> None:
    """Make writing more than ``most`` bytes into a file an error, as a full disk does."""
    import resource

    # Without this the kernel's signal would end the process instead.
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY))


def _prepare(death: str) -> None:
    from worker.admission import Admission
    from worker.engine import Engine

    def die(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    if death == "popped":
        Admission.claim = die  # type: ignore[method-assign]
    elif death == "poison":
        add = Engine.add

        def taste(engine: Engine, request: object) -> None:
            if POISON in request.prompt:  # type: ignore[attr-defined]
                die()
            add(engine, request)  # type: ignore[arg-type]

        Engine.add = taste  # type: ignore[method-assign]
    elif death == "short":
        import torch

        from worker.engine import ResidentPipeline

        encode = ResidentPipeline.encode_prompts

        def run_short(pipeline: ResidentPipeline, prompts: list[str], *more: object) -> object:
            if any(HUGE in prompt for prompt in prompts):
                raise torch.OutOfMemoryError("CUDA out of memory (a test says so)")
            return encode(pipeline, prompts, *more)  # type: ignore[arg-type]

        ResidentPipeline.encode_prompts = run_short  # type: ignore[assignment]
