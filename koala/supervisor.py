"""``koala up``: all parts as children of one process; who dies is restarted, nobody is left."""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import structlog

log = structlog.get_logger()

_FIRST_BACKOFF = 0.5
_LONGEST_BACKOFF = 15.0
# A part that ran so long was healthy: its next death starts the back-off afresh.
_HEALTHY_SECONDS = 30.0
# What a part is given beyond the drain before it is killed.
_KILL_MARGIN = 1.0
# What those get that stop last.
_LAST_SECONDS = 1.5
_PR_SET_PDEATHSIG = 1
# What it raises if a process cannot be started; the second one comes from `_die_with_parent`.
_NO_PROCESS = (OSError, subprocess.SubprocessError)


class PartFailed(Exception):
    """A part could not start at all; the message has what is known of the reason."""


@dataclass
class Part:
    """One supervised process.

    ``last_to_stop`` parts outlive the others, because those need them to stop in order.
    ``inherited`` are open files that the process keeps open too, by their descriptors.
    """

    name: str
    command: Sequence[str]
    env: Mapping[str, str]
    last_to_stop: bool = False
    inherited: Sequence[int] = ()
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    backoff: float = _FIRST_BACKOFF
    restart_at: float | None = None
    restarts: int = field(default=0)

    def start(self) -> None:
        """Start the process in a session of its own, so that Ctrl-C reaches only us."""
        self.process = subprocess.Popen(
            self.command,
            env=dict(self.env),
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            pass_fds=self.inherited,
            preexec_fn=_die_with_parent(os.getpid()) if sys.platform == "linux" else None,
        )
        self.started_at = time.monotonic()
        self.restart_at = None

    @property
    def is_running(self) -> bool:
        """Whether the process exists right now."""
        return self.process is not None and self.process.poll() is None

    @property
    def gave_up(self) -> bool:
        """Whether the process ended as failed by its own decision, not by a signal.

        Exit code 0 is the orderly end of a part that a signal asked to stop.
        """
        code = None if self.process is None else self.process.poll()
        return code is not None and code > 0

    def unhealthy_reason(self) -> str | None:
        """Why the process, although it runs, has to be replaced; ``None`` where it does not."""
        return None

    def last_words(self) -> str | None:
        """What the process said last, where that is kept; it goes to our stderr otherwise."""
        return None

    def close(self) -> None:
        """Free what is held for the process, which has ended for good."""

    def send(self, number: signal.Signals) -> None:
        """Signal the process, if it is there."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(number)


class Supervisor:
    """Starts parts, restarts those that die, and ends them all.

    Args:
        drain_seconds: What the parts may take to finish when asked to stop.
    """

    def __init__(self, drain_seconds: float) -> None:
        self._drain_seconds = drain_seconds
        self._parts: list[Part] = []
        self._stopping = False

    def add(self, part: Part) -> None:
        """Start a part and keep it running from now on.

        Raises:
            PartFailed: The system cannot start it.
        """
        try:
            part.start()
        except _NO_PROCESS as error:
            raise PartFailed(f"The {part.name} could not start: {error}.") from None
        self._parts.append(part)

    def request_stop(self) -> None:
        """Make ``run`` and ``wait_for`` return; safe to call from a signal handler."""
        self._stopping = True

    def wait_for(self, condition: Callable[[], bool]) -> bool:
        """Watch over the parts until ``condition`` holds; false if a stop came first.

        Raises:
            PartFailed: A part gave up at its first start.
        """
        while not self._stopping:
            for part in self._parts:
                if part.gave_up and part.restarts == 0:
                    raise PartFailed(_failure(part))
            self._tend()
            if condition():
                return True
            time.sleep(0.1)
        return False

    def run(self) -> None:
        """Watch over the parts until a stop is asked for."""
        while not self._stopping:
            self._tend()
            time.sleep(0.2)

    def stop(self) -> None:
        """End all parts: ask, wait for the drain, then kill; those others need go last."""
        deadline = time.monotonic() + self._drain_seconds + _KILL_MARGIN
        self._end([part for part in self._parts if not part.last_to_stop], deadline)
        self._end(
            [part for part in self._parts if part.last_to_stop], time.monotonic() + _LAST_SECONDS
        )
        for part in self._parts:
            part.close()

    def _tend(self) -> None:
        now = time.monotonic()
        for part in self._parts:
            if part.is_running:
                reason = part.unhealthy_reason()
                if reason is None:
                    continue
                log.error("a part is of no use and will be restarted", part=part.name, why=reason)
                self._end([part], now + _LAST_SECONDS)
            if part.restart_at is None:
                if now - part.started_at > _HEALTHY_SECONDS:
                    part.backoff = _FIRST_BACKOFF
                self._put_off(part, now)
                code = part.process.returncode if part.process else None
                said = {} if (words := part.last_words()) is None else {"said": words}
                log.error(
                    "a part died and will be restarted", part=part.name, exit_code=code, **said
                )
            elif now >= part.restart_at:
                part.restarts += 1
                try:
                    part.start()
                except _NO_PROCESS as error:
                    # Out of processes or memory, say: the other parts go on meanwhile.
                    self._put_off(part, now)
                    log.error(
                        "a part cannot be started and is tried again",
                        part=part.name,
                        error=str(error),
                    )

    def _put_off(self, part: Part, now: float) -> None:
        part.restart_at = now + part.backoff
        part.backoff = min(2 * part.backoff, _LONGEST_BACKOFF)

    def _end(self, parts: list[Part], deadline: float) -> None:
        for part in parts:
            part.send(signal.SIGTERM)
        for part in parts:
            if part.process is None:
                continue
            try:
                part.process.wait(timeout=max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                log.warning("a part did not stop in time and is killed", part=part.name)
                part.send(signal.SIGKILL)
                part.process.wait()


def _failure(part: Part) -> str:
    words = part.last_words()
    if words is not None:
        return f"The {part.name} could not start: {words}"
    code = None if part.process is None else part.process.returncode
    return f"The {part.name} could not start (exit code {code}); its own lines above may say why."


def _die_with_parent(parent: int) -> Callable[[], None]:
    """What a child runs first, so that even a killed supervisor leaves nobody behind."""

    def ask_the_kernel() -> None:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        # The parent may have died before the request was made.
        if os.getppid() != parent:
            os._exit(1)

    return ask_the_kernel
