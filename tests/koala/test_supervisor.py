import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from koala.supervisor import Part, PartFailed, Supervisor

SLEEP = "import time; time.sleep(60)"


def part(name: str, code: str, **more: bool) -> Part:
    return Part(name, [sys.executable, "-c", code], dict(os.environ), **more)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def eventually(condition: Callable[[], bool], seconds: float = 120) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.02)
    return False


@pytest.fixture
def supervisor() -> Iterator[Supervisor]:
    supervisor = Supervisor(drain_seconds=1)
    yield supervisor
    supervisor.stop()


def test_a_part_that_dies_is_started_again(supervisor: Supervisor) -> None:
    sleeper = part("sleeper", SLEEP)
    supervisor.add(sleeper)
    assert sleeper.process is not None
    first = sleeper.process.pid
    os.kill(first, signal.SIGKILL)
    assert supervisor.wait_for(lambda: sleeper.restarts == 1 and sleeper.is_running)
    assert sleeper.process.pid != first


def test_a_part_that_cannot_start_at_all_is_not_tried_for_ever(supervisor: Supervisor) -> None:
    supervisor.add(part("worker", "raise SystemExit(1)"))
    with pytest.raises(PartFailed, match=r"The worker could not start \(exit code 1\)"):
        supervisor.wait_for(lambda: False)


def test_a_part_that_was_stopped_in_order_while_others_start_is_started_again(
    supervisor: Supervisor,
) -> None:
    stopped = part("gateway", "raise SystemExit(0)")
    supervisor.add(stopped)
    assert supervisor.wait_for(lambda: stopped.restarts == 1)


def test_a_part_that_the_system_cannot_start_is_told_of(supervisor: Supervisor) -> None:
    with pytest.raises(PartFailed, match=r"The gateway could not start: .*/missing"):
        supervisor.add(Part("gateway", ["/missing"], {}))


def test_a_part_that_the_system_cannot_start_again_is_tried_until_it_can(
    supervisor: Supervisor, tmp_path: Path
) -> None:
    program = tmp_path / "sleep"
    shutil.copy("/bin/sleep", program)
    other = part("other", SLEEP)
    sleeper = Part("sleeper", [str(program), "60"], {})
    for each in (other, sleeper):
        supervisor.add(each)
    assert sleeper.process is not None
    program.rename(tmp_path / "away")
    sleeper.process.kill()
    assert supervisor.wait_for(lambda: sleeper.restarts == 1)
    assert other.is_running
    (tmp_path / "away").rename(program)
    assert supervisor.wait_for(lambda: sleeper.is_running)


def test_what_a_part_failed_with_is_told_as_far_as_it_is_known(supervisor: Supervisor) -> None:
    class Talkative(Part):
        def last_words(self) -> str:
            return "The disk is full."

    supervisor.add(Talkative("server", [sys.executable, "-c", "raise SystemExit(3)"], os.environ))
    with pytest.raises(PartFailed, match="could not start: The disk is full"):
        supervisor.wait_for(lambda: False)


def test_a_part_that_runs_but_is_of_no_use_is_replaced(supervisor: Supervisor) -> None:
    class Useless(Part):
        def unhealthy_reason(self) -> str | None:
            return "its socket is gone" if self.restarts == 0 else None

    useless = Useless("server", [sys.executable, "-c", SLEEP], os.environ)
    supervisor.add(useless)
    assert useless.process is not None
    first = useless.process.pid
    assert supervisor.wait_for(lambda: useless.restarts == 1 and useless.is_running)
    assert not alive(first)
    assert useless.process.pid != first


def test_stopping_ends_every_part_the_stubborn_one_too(supervisor: Supervisor) -> None:
    stubborn = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1);" + SLEEP
    parts = [part("meek", SLEEP), part("stubborn", stubborn)]
    for each in parts:
        supervisor.add(each)
    time.sleep(1)
    supervisor.stop()
    assert not any(each.is_running for each in parts)


def test_what_the_others_need_is_stopped_last(supervisor: Supervisor, tmp_path: Path) -> None:
    says = (
        "import signal, sys, time, pathlib\n"
        "def stop(*_):\n"
        "    time.sleep({delay})\n"
        "    open({log!r}, 'a').write({name!r})\n"
        "    sys.exit()\n"
        "signal.signal(signal.SIGTERM, stop)\n"
        "pathlib.Path({log!r} + {name!r}).touch()\n"
        "time.sleep(60)"
    )
    log = str(tmp_path / "log")
    server = part("server", says.format(delay=0, log=log, name="s"), last_to_stop=True)
    supervisor.add(server)
    supervisor.add(part("worker", says.format(delay=0.5, log=log, name="w")))
    assert eventually(lambda: Path(log + "s").exists() and Path(log + "w").exists())
    supervisor.stop()
    assert Path(log).read_text() == "ws"


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's help is Linux's own")
def test_no_part_outlives_a_killed_supervisor(tmp_path: Path) -> None:
    script = (
        "import os, sys, pathlib, time\n"
        "from koala.supervisor import Part, Supervisor\n"
        f"part = Part('sleeper', [sys.executable, '-c', {SLEEP!r}], dict(os.environ))\n"
        "Supervisor(1).add(part)\n"
        f"pathlib.Path({str(tmp_path / 'pid')!r}).write_text(f'{{part.process.pid}} ')\n"
        "time.sleep(60)\n"
    )
    supervisor = part("supervisor", script)
    supervisor.start()
    try:
        pid_file = tmp_path / "pid"
        assert eventually(lambda: pid_file.exists() and pid_file.read_text().endswith(" "))
        pid = int(pid_file.read_text())
        assert alive(pid)
        supervisor.send(signal.SIGKILL)
        assert eventually(lambda: not alive(pid))
    finally:
        supervisor.send(signal.SIGKILL)
        assert supervisor.process is not None
        supervisor.process.wait()
