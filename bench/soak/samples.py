"""What is looked at while the service is under load. Reads ``/proc``, so Linux only."""

import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final

import redis
from pydantic import BaseModel

from koala.keys import JOB_PREFIX, Keys

_PAGE: Final = os.sysconf("SC_PAGE_SIZE")
_MEBI: Final = 2**20


class Sample(BaseModel):
    """One look: seconds since the load began, and a value by quantity.

    Memory is in MiB, everything else a count.
    """

    seconds: float
    values: dict[str, float]


class Sampler:
    """Looks at processes, at Redis and at the image store.

    Args:
        processes: Process ids by name.
        connection: A blocking client that returns bytes.
        keys: Keys of the queue.
        images: The folder with the images.
    """

    def __init__(
        self,
        processes: Mapping[str, int],
        connection: redis.Redis,
        keys: Keys,
        images: Path,
    ) -> None:
        self._processes = processes
        self._redis = connection
        self._keys = keys
        self._images = images
        self._began = time.monotonic()

    def look(self) -> Sample:
        """What there is right now.

        Raises:
            OSError: A process is gone.
            redis.RedisError: Redis does not answer.
        """
        values: dict[str, float] = {}
        for name, pid in self._processes.items():
            values[f"{name} memory"] = _resident(pid) / _MEBI
            kinds = list(_open_files(pid))
            values[f"{name} open files"] = len(kinds)
            values[f"{name} sockets"] = sum(kind.startswith("socket:") for kind in kinds)
        info = self._redis.info()
        values["redis used memory"] = info["used_memory"] / _MEBI
        values["redis clients"] = info["connected_clients"]
        for kind, count in self._count_keys(self._redis.scan_iter(count=1000)).items():
            values[f"keys: {kind}"] = count
        values["images"] = sum(1 for _ in os.scandir(self._images)) if self._images.exists() else 0
        return Sample(seconds=time.monotonic() - self._began, values=values)

    def _count_keys(self, names: Iterable[bytes]) -> dict[str, int]:
        prefixes = {
            "jobs": JOB_PREFIX,
            "results": self._keys.results(""),
            "events": self._keys.events(""),
        }
        found: Counter[str] = Counter(dict.fromkeys((*prefixes, "others"), 0))
        for name in names:
            text = name.decode()
            kinds = (kind for kind, prefix in prefixes.items() if text.startswith(prefix))
            found[next(kinds, "others")] += 1
        return dict(found)


def _resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE


def _open_files(pid: int) -> Iterator[str]:
    folder = f"/proc/{pid}/fd"
    for name in os.listdir(folder):
        try:
            yield os.readlink(f"{folder}/{name}")
        except FileNotFoundError:
            # Closed meanwhile.
            continue
