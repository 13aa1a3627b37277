"""The service in parts that a test can kill, freeze and start again."""

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from types import MappingProxyType

import httpx
import redis
from pydantic import SecretStr

from koala import embedded
from koala.connections import connect_async
from koala.queue import JobQueue
from koala.settings import Settings
from koala.spec import JobRecord
from koala.store import ImageStore
from tests.faults import workers
from tests.support import free_port
from tests.worker.rig import Rig

_START_SECONDS = 300.0


class Parts:
    """Valkey with AOF, a gateway and workers: processes of their own, on a folder of their own.

    Args:
        folder: Data, images and logs.
        settings: What differs from the defaults.
    """

    def __init__(self, folder: Path, **settings: object) -> None:
        ours = {"data_dir": folder, "port": free_port(), "torch_threads": 1, "max_batch_rows": 8}
        self.settings = Settings.model_validate(ours | settings)
        self.base_url = f"http://127.0.0.1:{self.settings.port}"
        self.generations = f"{self.base_url}/v1/images/generations"
        self.log = folder / "log.txt"
        self.valkey: subprocess.Popen[bytes] | None = None
        self.gateway: subprocess.Popen[bytes] | None = None
        self.others: list[subprocess.Popen[bytes]] = []
        self.workers: list[ForkServerProcess] = []
        self.http = httpx.Client(base_url=self.base_url, timeout=120, trust_env=False)
        self.rig = Rig(self.settings, redis.Redis.from_url(self.settings.resolved_redis_url))

    def start_valkey(self) -> None:
        """Start the server on the data there is; returns when it answers."""
        self.valkey = subprocess.Popen(embedded.prepare(self.settings))
        embedded.wait_until_ready(self.settings)

    def kill_valkey(self) -> None:
        """Kill the server as a crash would."""
        assert self.valkey is not None
        self.valkey.kill()
        self.valkey.wait()

    def start_gateway(self, *command: str, env: Mapping[str, str] = MappingProxyType({})) -> None:
        """Start the gateway, or a ``command`` that is one; returns when it answers."""
        self.gateway = self._start(command or ("koala", "serve"), env)
        eventually(lambda: self._answers("/healthz"), _START_SECONDS)

    def start_own_worker(self, env: Mapping[str, str]) -> None:
        """Start a worker as a user does, with an environment of its own; that takes longer."""
        self.others.append(self._start(("koala", "work"), env))

    def _start(self, command: Sequence[str], env: Mapping[str, str]) -> subprocess.Popen[bytes]:
        ours = {
            f"KOALA_{name.upper()}": (
                value.get_secret_value() if isinstance(value, SecretStr) else str(value)
            )
            for name, value in self.settings.model_dump().items()
            if value is not None
        }
        with self.log.open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", *command], env={**os.environ, **ours, **env}, stderr=log
            )

    def stop_gateway(self) -> int:
        """Ask the gateway to end; its exit code."""
        assert self.gateway is not None
        self.gateway.send_signal(signal.SIGTERM)
        return self.gateway.wait(300)

    def start_worker(self, death: str = "", file_limit: int | None = None) -> ForkServerProcess:
        """Start a worker, see :func:`tests.faults.workers.start`."""
        worker = workers.start(self.settings, self.log, death, file_limit)
        self.workers.append(worker)
        return worker

    def kill_worker(self, worker: ForkServerProcess) -> None:
        """Kill a worker as the kernel does when memory runs out."""
        worker.kill()
        worker.join()
        self.workers.remove(worker)

    def stop_worker(self, worker: ForkServerProcess) -> int | None:
        """Ask a worker to end; its exit code."""
        worker.terminate()
        worker.join(300)
        self.workers.remove(worker)
        return worker.exitcode

    def wait_until_ready(self, count: int = 1) -> None:
        """Return when the gateway is ready and ``count`` workers are there."""
        eventually(lambda: self._answers("/readyz") and self.alive >= count, _START_SECONDS)

    def wait_until_started(self, worker: ForkServerProcess) -> None:
        """Return when one worker is ready for jobs."""
        names = re.compile(rf"-{worker.pid}-")

        def is_there() -> bool:
            ads = self.rig.redis.hkeys(self.rig.keys.workers)
            return any(names.search(name.decode()) for name in ads)

        eventually(is_there, _START_SECONDS)

    @property
    def alive(self) -> int:
        """How many workers say that they live."""
        return self.rig.redis.hlen(self.rig.keys.workers)

    @property
    def store(self) -> ImageStore:
        """Where the images are."""
        return ImageStore(self.settings.resolved_image_store)

    def records(self, job_ids: list[str]) -> dict[str, JobRecord]:
        """Jobs as the gateway sees them, over one connection."""

        async def read() -> list[JobRecord]:
            connection = connect_async(self.settings)
            try:
                queue = JobQueue(connection, self.settings)
                return [await queue.get(job_id) for job_id in job_ids]
            finally:
                await connection.aclose()

        return dict(zip(job_ids, asyncio.run(read()), strict=True))

    def have_completed(self, job_ids: list[str]) -> bool:
        """Whether all these jobs have completed."""
        return {record.state for record in self.records(job_ids).values()} == {"completed"}

    @property
    def images(self) -> list[str]:
        """Names of all stored images; of halves left by the killed nobody knows the name."""
        folder = Path(self.settings.resolved_image_store)
        return [path.name for path in folder.glob("[!.]*")]

    def admit(self, **body: object) -> str:
        """Send a request that is answered at once; the job's id."""
        response = self.http.post(self.generations, json=body, headers={"Prefer": "respond-async"})
        assert response.status_code == 202, response.text
        job_id: str = response.json()["id"]
        return job_id

    def end(self) -> None:
        """End all processes."""
        for worker in self.workers:
            worker.kill()
            worker.join()
        for process in (*self.others, self.gateway, self.valkey):
            if process is not None:
                # What is frozen cannot end.
                with suppress(ProcessLookupError):
                    process.send_signal(signal.SIGCONT)
                process.kill()
                process.wait()
        self.http.close()
        self.rig.redis.close()

    def _answers(self, path: str) -> bool:
        try:
            return self.http.get(path).is_success
        except httpx.TransportError:
            return False


@contextmanager
def parts(
    folder: Path, *, worker_count: int = 0, start_gateway: bool = True, **settings: object
) -> Iterator[Parts]:
    """A running service with ``worker_count`` workers; ended with the context, log printed."""
    running = Parts(folder, **settings)
    try:
        running.start_valkey()
        if start_gateway:
            running.start_gateway()
        for _ in range(worker_count):
            running.start_worker()
        if worker_count:
            running.wait_until_ready(worker_count)
        yield running
    finally:
        running.end()
        print(running.log.read_text() if running.log.exists() else "no log")


def eventually(condition: Callable[[], bool], seconds: float = 300.0) -> None:
    """Return as soon as ``condition`` holds; fail when it does not come to."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came to be"
        time.sleep(0.02)
