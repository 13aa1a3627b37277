"""The processors that this process may use, and how numerical libraries are to use them."""

import ctypes
import os
from collections.abc import Iterator, MutableMapping
from pathlib import Path, PurePosixPath
from typing import Any, Final

_PROC: Final = Path("/proc/self")

# Parameters of glibc's `mallopt`, and their values: tensors below the largest threshold that it
# takes come from the heap, and so much that is free at its end stays there.
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_MMAP_BYTES: Final = 32 * 2**20
_TRIM_BYTES: Final = 512 * 2**20


def configure(environ: MutableMapping[str, str]) -> None:
    """Set up threads and memory of numerical libraries; before torch is imported.

    OpenMP's threads spin while they wait for each other. As soon as another process is busy on
    one of their cores that costs more than the work itself: a U-Net call of 25 ms takes 900 ms.
    Variables that are set already are left alone.
    """
    environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    environ.setdefault("OMP_NUM_THREADS", str(available()))
    if not any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in environ):
        _keep_freed_memory()


def available(proc: Path = _PROC) -> int:
    """How many processors this process can keep busy: by its affinity and its cgroup's quota.

    Args:
        proc: The kernel's description of the process.
    """
    if hasattr(os, "sched_getaffinity"):
        count = len(os.sched_getaffinity(0))
    else:
        count = os.cpu_count() or 1
    # Part of a processor is not worth a thread: the others would wait for it at each step.
    return max(1, min([count, *(int(quota) for quota in _quotas(proc))]))


def _keep_freed_memory() -> None:
    """Keep the memory of tensors for the next ones, which the kernel would have to clear anew.

    In paired runs of the demo model that was 6 % of a U-Net call's processor time (median).
    """
    # Other C libraries have no such function.
    mallopt: Any = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _MMAP_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _TRIM_BYTES)


def _quotas(proc: Path) -> Iterator[float]:
    """Processors that each of the process's cgroups may use, as far as they are limited."""
    for group in _groups(proc):
        try:
            if (group / "cpu.max").exists():
                quota, period = (group / "cpu.max").read_text().split()
            else:
                quota = (group / "cpu.cfs_quota_us").read_text()
                period = (group / "cpu.cfs_period_us").read_text()
        except OSError:
            # The root of the hierarchy has no limit, and no such files.
            continue
        if quota != "max" and int(quota) > 0:
            yield int(quota) / int(period)


def _groups(proc: Path) -> Iterator[Path]:
    """Folders of the cgroups, of version 1 or 2, that limit the process's processor time."""
    try:
        cgroups = (proc / "cgroup").read_text()
        mounts = (proc / "mountinfo").read_text()
    except OSError:
        # Only Linux has them.
        return
    paths: dict[str, PurePosixPath] = {}
    for line in cgroups.splitlines():
        _, controllers, path = line.split(":", 2)
        # Version 2 names no controllers.
        paths |= dict.fromkeys(controllers.split(","), PurePosixPath(path))
    for line in mounts.splitlines():
        mount, _, filesystem = line.partition(" - ")
        kind, *_, options = filesystem.split(" ")
        if kind == "cgroup2" and "" in paths:
            own = paths[""]
        elif kind == "cgroup" and "cpu" in options.split(",") and "cpu" in paths:
            own = paths["cpu"]
        else:
            continue
        _, _, _, root, folder, *_ = mount.split(" ")
        # A container sees only the part of the hierarchy from its own cgroup on.
        seen = own.is_relative_to(root)
        inside = own.relative_to(root) if seen else PurePosixPath()
        group = Path(folder) / inside
        yield from [group, *group.parents][: len(inside.parts) + 1]
