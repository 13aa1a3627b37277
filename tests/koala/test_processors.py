"""How many processors a worker uses, and that its threads leave them to others while they wait."""

import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest

from koala import processors

OPENMP = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")


def threads_of(*command: str, affinity: set[int] | None = None, **env: str) -> dict[str, str]:
    """How OpenMP is set up in a ``koala`` command, as it tells when torch loads it."""
    inherited = {name: value for name, value in os.environ.items() if name not in OPENMP}
    with subprocess.Popen(
        [sys.executable, "-m", "koala", *command],
        env={**inherited, "OMP_DISPLAY_ENV": "verbose", **env},
        preexec_fn=None if affinity is None else lambda: os.sched_setaffinity(0, affinity),
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        lines = []
        for line in process.stderr:
            lines.append(line)
            if "DISPLAY ENVIRONMENT END" in line:
                break
        # What it does from there on is not asked for.
        process.terminate()
    told = dict(re.findall(r"(\w+) = '(\w+)'", "".join(lines)))
    assert told, lines
    # Of a policy that was not set it says PASSIVE too; what counts is how often threads look.
    return {name: told[name] for name in ("OMP_NUM_THREADS", "GOMP_SPINCOUNT")}


def test_a_worker_uses_the_processors_it_may_use_and_its_threads_do_not_spin() -> None:
    one = {min(os.sched_getaffinity(0))}
    told = threads_of("work", affinity=one)
    assert told == {"OMP_NUM_THREADS": "1", "GOMP_SPINCOUNT": "0"}


def test_threads_of_workers_that_up_starts_do_not_spin_either(tmp_path: Path) -> None:
    told = threads_of("up", KOALA_DATA_DIR=str(tmp_path), KOALA_PORT="0", OMP_NUM_THREADS="3")
    assert told == {"OMP_NUM_THREADS": "3", "GOMP_SPINCOUNT": "0"}


def test_what_the_operator_set_for_the_threads_is_left_alone(tmp_path: Path) -> None:
    output = str(tmp_path / "curve.json")
    told = threads_of("measure", "-o", output, OMP_NUM_THREADS="3", OMP_WAIT_POLICY="ACTIVE")
    assert told["OMP_NUM_THREADS"] == "3"
    assert int(told["GOMP_SPINCOUNT"]) > 1_000_000


FAULTS = """
import ctypes, os, resource
from koala import processors
processors.configure(os.environ)
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
for round in range(11):
    blocks = [libc.malloc(ctypes.c_size_t(16 << 20)) for _ in range(4)]
    for block in blocks:
        ctypes.memset(block, 1, 16 << 20)
    for block in blocks:
        libc.free(ctypes.c_void_p(block))
    if round == 0:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(**env: str) -> int:
    """How often memory that was freed and is taken again has to be fetched from the kernel."""
    done = subprocess.run(
        [sys.executable, "-c", FAULTS], env={**os.environ, **env}, capture_output=True, check=True
    )
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc gives memory back")
def test_freed_memory_is_kept_for_the_next_tensors_unless_the_operator_says_otherwise() -> None:
    told_to_give_back = page_faults(MALLOC_TRIM_THRESHOLD_="131072")
    assert page_faults() < told_to_give_back / 10


MOUNTS = """\
23 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
31 23 0:28 / {root} rw,relatime - tmpfs tmpfs rw,mode=755
"""
V2 = "32 31 0:29 {inside} {root} rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = "32 31 0:29 {inside} {root}/cpu rw,nosuid - cgroup cgroup rw,cpu,cpuacct\n"


@pytest.fixture
def eight(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose kernel would let us run on eight processors."""
    monkeypatch.setattr("koala.processors.os.sched_getaffinity", lambda _: set(range(8)))


def describe(
    folder: Path, cgroup: str, mount: str, files: dict[str, str], inside: str = "/"
) -> Path:
    """What the kernel says of a process, written into ``folder``; returns its /proc/self."""
    root, proc = folder / "cgroup", folder / "proc"
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    proc.mkdir()
    (proc / "cgroup").write_text(cgroup)
    (proc / "mountinfo").write_text((MOUNTS + mount).format(root=root, inside=inside))
    return proc


@pytest.mark.usefixtures("eight")
@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"pod/cpu.max": "max 100000\n", "pod/worker/cpu.max": "max 100000\n"}, 8),
        ({"pod/cpu.max": "max 100000\n", "pod/worker/cpu.max": "350000 100000\n"}, 3),
        # The quota of any group further out holds for those inside.
        ({"pod/cpu.max": "200000 100000\n", "pod/worker/cpu.max": "600000 100000\n"}, 2),
        ({"pod/worker/cpu.max": "50000 100000\n"}, 1),
        ({"pod/worker/cpu.max": "1600000 100000\n"}, 8),
    ],
)
def test_a_quota_of_cgroups_version_2_limits_the_processors(
    tmp_path: Path, files: dict[str, str], expected: int
) -> None:
    proc = describe(tmp_path, "0::/pod/worker\n", V2, files)
    assert processors.available(proc) == expected


@pytest.mark.usefixtures("eight")
def test_a_quota_of_cgroups_version_1_limits_the_processors(tmp_path: Path) -> None:
    cgroup = "8:pids:/\n4:cpu,cpuacct:/docker/1\n0::/\n"
    files = {
        "cpu/docker/1/cpu.cfs_quota_us": "250000\n",
        "cpu/docker/1/cpu.cfs_period_us": "100000\n",
        "cpu/docker/cpu.cfs_quota_us": "-1\n",
        "cpu/docker/cpu.cfs_period_us": "100000\n",
    }
    assert processors.available(describe(tmp_path, cgroup, V1, files)) == 2


@pytest.mark.usefixtures("eight")
@pytest.mark.parametrize("inside", ["/docker/1", "/", "/../.."])
def test_a_container_sees_its_own_quota_at_the_root_of_the_hierarchy(
    tmp_path: Path, inside: str
) -> None:
    # With a namespace of its own its path is /, without one it is what the host calls it.
    cgroup = "4:cpu,cpuacct:/docker/1\n" if inside == "/docker/1" else "4:cpu,cpuacct:/\n"
    files = {"cpu/cpu.cfs_quota_us": "200000\n", "cpu/cpu.cfs_period_us": "100000\n"}
    assert processors.available(describe(tmp_path, cgroup, V1, files, inside)) == 2


@pytest.mark.usefixtures("eight")
def test_without_cgroups_affinity_decides(tmp_path: Path) -> None:
    assert processors.available(tmp_path / "no proc") == 8
