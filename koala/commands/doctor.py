"""``koala doctor``: what is reachable, what is installed and what fits."""

import asyncio
import importlib.metadata
import json
import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import redis
from rich.console import Console
from rich.table import Table

from koala import processors
from koala.apikeys import parse_keys
from koala.catalogue import ModelCard, resolve
from koala.checkpoint import pipeline_files
from koala.connections import connect, connect_async
from koala.console import plain
from koala.embedded import EmbeddedServerError, binary, is_running
from koala.errors import ModelNotFound
from koala.keyfile import KeyFileError, read_keys
from koala.keys import Keys
from koala.settings import Settings
from koala.store import ImageStore
from koala.workers import MeasuredSize, WorkerAd, alive


class Verdict(StrEnum):
    """How a check came out; only ``FAIL`` makes the command fail."""

    OK = "ok"
    NOTE = "note"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report."""

    subject: str
    verdict: Verdict
    text: str


_COLOURS = {Verdict.OK: "green", Verdict.NOTE: "yellow", Verdict.FAIL: "red"}


def run(settings: Settings, console: Console) -> bool:
    """Print the report; whether nothing failed."""
    findings = [finding for check in _CHECKS for finding in check(settings)]
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for finding in findings:
        colour = _COLOURS[finding.verdict]
        # Of what Redis, workers and settings say, nothing is markup.
        table.add_row(
            finding.subject, f"[{colour}]{finding.verdict}[/{colour}]", plain(finding.text)
        )
    console.print(table)
    return all(finding.verdict is not Verdict.FAIL for finding in findings)


def _redis(settings: Settings) -> Iterator[Finding]:
    if settings.redis_url is None and not is_running(settings):
        try:
            text = f"not running; `koala up` would start the embedded {binary().name}"
            yield Finding("redis", Verdict.NOTE, text)
        except EmbeddedServerError as error:
            yield Finding("redis", Verdict.FAIL, str(error))
        return
    try:
        client = connect(settings)
    except ValueError as error:
        yield Finding("redis", Verdict.FAIL, f"KOALA_REDIS_URL: {error}")
        return
    try:
        info = client.info()
        name = "Valkey" if "valkey_version" in info else "Redis"
        version = info.get("valkey_version") or info["redis_version"]
        persists = "with AOF" if info.get("aof_enabled") else "without AOF: a crash loses jobs"
        verdict = Verdict.OK if info.get("aof_enabled") else Verdict.NOTE
        yield Finding("redis", verdict, f"{name} {version} at {_place(settings)}, {persists}")
    except redis.RedisError as error:
        yield Finding("redis", Verdict.FAIL, f"{_place(settings)}: {error}")
    finally:
        client.close()


def _place(settings: Settings) -> str:
    return _without_password(settings.resolved_redis_url)


def _without_password(url: str) -> str:
    # A password, if there is one, stays out of the report.
    return url.rsplit("@", 1)[-1]


def _workers(settings: Settings) -> Iterator[Finding]:
    try:
        ads = asyncio.run(_alive(settings))
    except (redis.RedisError, ValueError):
        # What is wrong with Redis stands in a line of its own.
        return
    for ad in ads:
        rate = f", {ad.images_per_second:.2f} images/s" if ad.images_per_second else ""
        loaded = "" if ad.is_loaded else ", weights freed until the next job"
        text = (
            f"{ad.name}: {ad.model} on {ad.device} ({ad.dtype}), {ad.jobs_in_flight} jobs in "
            f"flight, {ad.rows} of {ad.max_rows} rows{rate}{loaded}"
        )
        if ad.trouble is None:
            yield Finding("worker", Verdict.OK, text)
        else:
            yield Finding("worker", Verdict.FAIL, f"{text}; it claims no jobs: {ad.trouble}")
        for measured in ad.sizes:
            yield Finding("batch", Verdict.OK, _curve(measured))
    if not ads:
        yield Finding("worker", Verdict.NOTE, "none alive; `koala work` starts one")


def _curve(measured: MeasuredSize) -> str:
    steps = ", ".join(f"{rows}: {1000 * s:.3g}" for rows, s in measured.step_seconds.items())
    return f"{measured.name} px up to {measured.max_rows} rows; ms per step by rows: {steps}"


async def _alive(settings: Settings) -> list[WorkerAd]:
    connection = connect_async(settings)
    try:
        return await alive(connection, Keys(settings.queue))
    finally:
        await connection.aclose()


def _gateway(settings: Settings) -> Iterator[Finding]:
    address = f"{settings.host}:{settings.port}"
    try:
        with socket.create_connection((settings.host, settings.port), timeout=2):
            yield Finding("gateway", Verdict.OK, f"something listens on {address}")
    except OSError:
        yield Finding("gateway", Verdict.NOTE, f"nothing listens on {address}")


def _keys(settings: Settings) -> Iterator[Finding]:
    if not settings.login_required:
        exposure = settings.exposure
        text = exposure or "none: whoever reaches the gateway may use it"
        yield Finding("api keys", Verdict.NOTE if exposure is None else Verdict.FAIL, text)
        return
    given = settings.api_keys
    count = 0 if given is None else len(parse_keys(given.get_secret_value()))
    try:
        count += 0 if settings.api_keys_file is None else len(read_keys(settings.api_keys_file))
    except KeyFileError as error:
        yield Finding("api keys", Verdict.FAIL, f"KOALA_API_KEYS_FILE: {error}")
        return
    verdict = Verdict.OK if count else Verdict.NOTE
    yield Finding("api keys", verdict, f"{count}" if count else "none left: nobody gets in")


def _model(settings: Settings) -> Iterator[Finding]:
    try:
        card = resolve(settings.model, settings.model_revision)
    except ModelNotFound as error:
        yield Finding("model", Verdict.FAIL, error.message)
        return
    side = card.native_side
    text = f"{card.id} from {card.source}, {side} px, {card.steps} steps by default"
    yield Finding("model", Verdict.OK, text)
    yield from _fits(card)


def _fits(card: ModelCard) -> Iterator[Finding]:
    try:
        import torch
    except ImportError:
        text = "torch is not installed: this machine can run a gateway, not a worker"
        yield Finding("device", Verdict.NOTE, text)
        return
    weights = _weight_bytes(_folder(card))
    need = f"weights take {weights / 2**30:.2f} GiB" if weights else _not_here(card)
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(i)
            name = torch.cuda.get_device_name(i)
            fits = not weights or weights < free
            verdict = Verdict.OK if fits else Verdict.FAIL
            text = f"cuda:{i} {name}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free; {need}"
            yield Finding("device", verdict, text)
    else:
        text = (
            f"CPU with {processors.available()} cores (torch {torch.__version__}), no CUDA; {need}"
        )
        verdict = Verdict.OK if card.native_side <= 128 else Verdict.NOTE
        yield Finding("device", verdict, text)


def _folder(card: ModelCard) -> Path | None:
    """Where the model is on this disk."""
    folder = Path(card.source)
    if folder.is_dir():
        return folder
    # A gateway's installation does without it.
    from koala import hub

    return hub.cached(card.source, card.revision, pipeline_files)


def _not_here(card: ModelCard) -> str:
    return f"weights are not on this disk: `koala download {card.source}` fetches them"


def _weight_bytes(folder: Path | None) -> int:
    if folder is None or not (folder / "model_index.json").is_file():
        return 0
    parts = [k for k in json.loads((folder / "model_index.json").read_text()) if k[0] != "_"]
    return sum(p.stat().st_size for part in parts for p in (folder / part).glob("*.safetensors"))


def _packages(_: Settings) -> Iterator[Finding]:
    for name in ("koala-serve", "fastapi", "rq", "redis", "diffusers", "transformers"):
        try:
            yield Finding(name, Verdict.OK, importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            yield Finding(name, Verdict.NOTE, "not installed")


def _store(settings: Settings) -> Iterator[Finding]:
    url = settings.resolved_image_store
    folder = None if "://" in url else Path(url)
    if folder is not None and not folder.exists():
        existing = next(parent for parent in folder.parents if parent.exists())
        if existing.is_dir() and os.access(existing, os.W_OK):
            text = f"{folder}, made when it is first needed, {_free(existing)}"
            yield Finding("images", Verdict.OK, text)
        else:
            yield Finding("images", Verdict.FAIL, f"{folder}: {existing} is no writable folder")
        return
    try:
        ImageStore(url).probe()
    except (OSError, ValueError, ImportError) as error:
        yield Finding("images", Verdict.FAIL, f"{_without_password(url)}: {error}")
        return
    text = "written, read and deleted" if folder is None else _free(folder)
    yield Finding("images", Verdict.OK, f"{_without_password(url)}, {text}")


def _free(folder: Path) -> str:
    stat = os.statvfs(folder)
    return f"{stat.f_bavail * stat.f_frsize / 2**30:.1f} GiB free"


_CHECKS: tuple[Callable[[Settings], Iterator[Finding]], ...] = (
    _packages,
    _redis,
    _workers,
    _gateway,
    _keys,
    _model,
    _store,
)
