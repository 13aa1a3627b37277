"""What a worker says of itself, and who of them is alive."""

from dataclasses import dataclass
from datetime import datetime

import redis
import redis.asyncio
from pydantic import BaseModel, ConfigDict, ValidationError

from koala.clock import in_seconds
from koala.keys import Keys


class MeasuredSize(BaseModel):
    """What a worker measured at one image size, in pixels.

    ``step_seconds`` maps rows of a U-Net call to its seconds; ``max_rows`` is the batch that
    follows from it; ``decode_seconds`` is one image's. ``slowness`` is how many times as long the
    worker's loop takes under load as the calls in it by this measurement.
    """

    model_config = ConfigDict(frozen=True)

    width: int
    height: int
    max_rows: int
    step_seconds: dict[int, float]
    decode_seconds: float | None = None
    slowness: float = 1.0

    @property
    def name(self) -> str:
        """The size as requests write it."""
        return f"{self.width}x{self.height}"


class Vram(BaseModel):
    """A GPU's memory in bytes: all of it, what is free, and what the worker's torch holds.

    ``weights_bytes`` is the model's part of ``held_bytes``. What is neither free nor held belongs
    to other programs.
    """

    model_config = ConfigDict(frozen=True)

    total_bytes: int
    free_bytes: int
    held_bytes: int
    weights_bytes: int


class _Expiring(BaseModel):
    """The part of an account that every version has to understand."""

    model_config = ConfigDict(frozen=True)

    expires_at: datetime

    def is_alive(self, now: float) -> bool:
        """Whether the account is still good at ``now``, Redis' time."""
        return self.expires_at.timestamp() > now


class WorkerAd(_Expiring):
    """A worker's own account of itself, renewed with every heartbeat.

    ``rows`` and ``max_rows`` count rows of the U-Net batch (two for an image with guidance).
    ``started_at`` is Redis' time, and so is ``expires_at``, when the account is void unless
    renewed. ``slowness`` is that of all sizes together. ``store_seconds`` pass from a job's last
    pixel until its end is written down. ``vram`` is ``None`` on a CPU. ``is_loaded`` is false while
    the weights are freed for want of work; the next job brings them back. ``trouble``
    says why the worker claims no jobs, if so.
    """

    name: str
    model: str
    device: str
    dtype: str
    version: str
    started_at: datetime
    jobs_in_flight: int
    rows: int
    max_rows: int
    images_total: int
    images_last_minute: int = 0
    images_per_second: float | None = None
    seconds_per_step: float | None = None
    slowness: float = 1.0
    store_seconds: float = 0.0
    vram: Vram | None = None
    metrics_url: str | None = None
    sizes: list[MeasuredSize] = []
    is_loaded: bool = True
    trouble: str | None = None

    def serves(self, model: str) -> bool:
        """Whether it claims jobs for ``model``."""
        return self.model == model and self.trouble is None


@dataclass(frozen=True, slots=True)
class Accounts:
    """The accounts of live workers, by name, and why others cannot be read, by their names."""

    alive: list[WorkerAd]
    unreadable: dict[str, str]


def advertise(connection: redis.Redis, keys: Keys, ad: WorkerAd) -> None:
    """Write or renew a worker's account."""
    connection.hset(keys.workers, ad.name, ad.model_dump_json())


def withdraw(connection: redis.Redis, keys: Keys, name: str) -> None:
    """Remove a worker's account."""
    connection.hdel(keys.workers, name)


def forget_dead(connection: redis.Redis, keys: Keys) -> None:
    """Remove the accounts of workers that went without a word, and what says no such time.

    An account of another version stays as long as its worker renews it.
    """
    with connection.pipeline(transaction=False) as pipeline:
        pipeline.time()
        pipeline.hgetall(keys.workers)
        now, accounts = pipeline.execute()
    for name, raw in accounts.items():
        if not _is_good(raw, in_seconds(now)):
            connection.hdel(keys.workers, name)


async def alive(connection: redis.asyncio.Redis, keys: Keys) -> list[WorkerAd]:
    """The accounts of all live workers of a queue, by name."""
    return (await read_accounts(connection, keys)).alive


async def read_accounts(connection: redis.asyncio.Redis, keys: Keys) -> Accounts:
    """What all live workers of a queue say of themselves."""
    async with connection.pipeline(transaction=False) as pipeline:
        pipeline.time()
        pipeline.hgetall(keys.workers)
        reply, found = await pipeline.execute()
    accounts, now = Accounts([], {}), in_seconds(reply)
    for name, raw in found.items():
        try:
            ad = WorkerAd.model_validate_json(raw)
        except ValidationError as error:
            if _is_good(raw, now):
                first = error.errors(include_input=False, include_url=False)[0]
                reason = f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"
                accounts.unreadable[name.decode(errors="replace")] = reason
            continue
        if ad.is_alive(now):
            accounts.alive.append(ad)
    accounts.alive.sort(key=lambda ad: ad.name)
    return accounts


def _is_good(raw: bytes | str, now: float) -> bool:
    try:
        return _Expiring.model_validate_json(raw).is_alive(now)
    except ValidationError:
        return False
