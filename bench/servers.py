"""The contenders that take requests, as processes."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from bench.contenders import Contender
from bench.load import Address
from bench.processes import (
    READY_SECONDS,
    ContenderFailed,
    Process,
    environment,
    free_port,
    python_module,
    wait_until_ready,
)
from koala import embedded
from koala.connections import connect
from koala.keys import Keys
from koala.settings import Settings
from koala.workers import WorkerAd

# LitServe's row cap where no worker of ours says what is good here.
_LITSERVE_ROWS: Final = 32


class Server:
    """A contender: its processes, and where it takes requests.

    Args:
        processes: In the order of their start; they end in the reverse one.
        address: Where it takes requests.
        health: The path that answers with success once it is ready.
    """

    def __init__(self, processes: Sequence[Process], address: Address, health: str) -> None:
        self.address = address
        self._processes = processes
        self._health = health

    def wait_until_ready(self, seconds: float = READY_SECONDS) -> None:
        """Return once it takes requests.

        Raises:
            ContenderFailed: It does not, within so many seconds.
        """
        wait_until_ready(self.address.base_url + self._health, self._processes, seconds)

    def pause(self) -> None:
        """Nothing: an idle server is idle, and ours holds leases that must not run out."""

    @contextmanager
    def awake(self) -> Iterator[Address]:
        """The time in which it is measured.

        Raises:
            ContenderFailed: One of its processes is gone.
        """
        yield self.address
        for process in self._processes:
            if not process.is_running:
                raise ContenderFailed(f"{process.name} went away")

    def stop(self) -> None:
        """End its processes."""
        for process in reversed(self._processes):
            process.stop()


class Koala(Server):
    """Our stack as ``koala up`` starts it: embedded Valkey, gateway, one worker.

    Args:
        folder: Data directory of its own.
        threads: CPU threads of the worker's torch.
        rows: Row cap; ``None`` lets the worker choose.
        worker: Module of the worker and its arguments.
        settings: More variables for the parts.
    """

    def __init__(
        self,
        folder: Path,
        threads: int,
        rows: int | None = None,
        worker: Sequence[str] = ("koala", "work"),
        settings: Mapping[str, str] | None = None,
    ) -> None:
        port = free_port()
        env = environment() | {
            "KOALA_DATA_DIR": str(folder),
            "KOALA_PORT": str(port),
            "KOALA_TORCH_THREADS": str(threads),
            "KOALA_LOG_LEVEL": "error",
        }
        env |= settings or {}
        if rows is not None:
            env["KOALA_MAX_BATCH_ROWS"] = str(rows)
        self.settings: Final = Settings(data_dir=folder, redis_url=None)
        processes = [Process("valkey", embedded.prepare(self.settings), env)]
        embedded.wait_until_ready(self.settings)
        processes.append(Process("koala serve", python_module("koala", "serve"), env))
        processes.append(Process(" ".join(worker), python_module(*worker), env))
        super().__init__(processes, Address(f"http://127.0.0.1:{port}"), "/readyz")

    @property
    def pids(self) -> dict[str, int]:
        """The ids of its processes by what they are."""
        names = ("valkey", "gateway", "worker")
        return {name: p.pid for name, p in zip(names, self._processes, strict=True)}

    @property
    def batch_rows(self) -> int:
        """The row cap that the worker chose."""
        return max(ad.max_rows for ad in self._ads())

    @property
    def metrics_url(self) -> str:
        """Where the worker's metrics are."""
        [url] = [ad.metrics_url for ad in self._ads()]
        assert url is not None
        return url

    def _ads(self) -> list[WorkerAd]:
        with connect(self.settings) as connection:
            ads = connection.hvals(Keys(self.settings.queue).workers)
        return [WorkerAd.model_validate_json(ad) for ad in ads]


class Peer(Server):
    """A server of this package that is one command: ``python -m module port *arguments``."""

    def __init__(self, module: str, *arguments: int) -> None:
        port = free_port()
        command = python_module(module, str(port), *map(str, arguments))
        self._process = Process(module, command, environment())
        super().__init__([self._process], Address(f"http://127.0.0.1:{port}"), "/health")

    def pause(self) -> None:
        """Freeze it: LitServe polls its queue a thousand times a second, also when idle."""
        self._process.pause()

    @contextmanager
    def awake(self) -> Iterator[Address]:
        """Let it run, within the block only."""
        self._process.resume()
        try:
            with super().awake() as address:
                yield address
        finally:
            self.pause()


def start(contender: Contender, folder: Path, threads: int, rows: int | None) -> Server:
    """Start a contender; it is not ready yet.

    Args:
        contender: Who; not the raw limit.
        folder: A folder that it may fill.
        threads: CPU threads of torch.
        rows: Row cap of its batches; ``None`` lets it choose, where it can.

    Raises:
        ValueError: The contender takes no requests.
    """
    match contender:
        case Contender.OURS:
            return Koala(folder, threads, rows)
        case Contender.WHOLE:
            return Koala(folder, threads, rows, ("bench.whole_requests",))
        case Contender.LITSERVE:
            # LitServe counts requests; with guidance one takes two rows.
            images = max(1, (rows or _LITSERVE_ROWS) // 2)
            return Peer("bench.litserve_server", threads, images)
        case Contender.LOCK:
            return Peer("bench.locked_server", threads)
        case Contender.RAW:
            raise ValueError("the raw limit takes no requests")
