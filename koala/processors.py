"""The processors that this process may use, and how torch's threads share them with others."""

import os
from collections.abc import Iterator, MutableMapping
from pathlib import Path, PurePosixPath
from typing import Final

_PROC: Final = Path("/proc/self")


def configure(environ: MutableMapping[str, str]) -> None:
    """Set up the threads of numerical libraries; before torch is imported, or it has no effect.

    OpenMP's threads spin while they wait for each other. As soon as another process is busy on
    one of their cores that costs more than the work itself: a U-Net call of 25 ms takes 900 ms.
    Variables that are set already are left alone.
    """
    environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    environ.setdefault("OMP_NUM_THREADS", str(available()))


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
