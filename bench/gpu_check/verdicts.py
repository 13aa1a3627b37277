"""Verdicts over what was measured, one a line."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from bench.gpu_check.reference import Published

# What drivers, clocks and a desktop on the same card may cost.
_SLOWER: Final = 1.25
_LARGER: Final = 1.10
_OFF_PLAN: Final = 0.15
# Batching never gains much at 1024 px; it must not lose.
_KEEPS: Final = 0.95


class Verdict(StrEnum):
    """How a line came out; only ``FAIL`` makes the check fail."""

    OK = "ok"
    NOTE = "note"
    FAIL = "FAIL"


@dataclass(frozen=True, slots=True)
class Level:
    """A closed loop of so many clients: images a minute, median seconds of an answer, errors."""

    clients: int
    images_per_minute: float
    latency: float
    errors: int


@dataclass(frozen=True, slots=True)
class Measured:
    """What was measured. Sizes are in bytes, times in seconds.

    Args:
        device: What torch calls it; empty: a CPU.
        vram: Bytes that the card has.
        idle_latency: Median of single requests to an idle server.
        peak: Memory at the peak of the load: what torch held on the card, on a CPU the process.
        levels: By ascending number of clients.
    """

    device: str
    vram: int
    idle_latency: float
    peak: int
    levels: Sequence[Level]


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the report."""

    subject: str
    measured: str
    reference: str
    verdict: Verdict


def report(
    measured: Measured, known: Sequence[Published], card: str | None, planned: int | None
) -> Iterator[Line]:
    """Every line.

    Args:
        measured: What was measured.
        known: What was published of the model at this size.
        card: Key of the published card that this one is; ``None``: none of them.
        planned: Peak bytes by ``koala plan``; ``None``: it has no word on it.
    """
    here = next((each for each in known if each.card == card), None)
    yield _latency(measured, known, here)
    for level in measured.levels:
        yield _throughput(level, measured.levels[0])
    yield _memory(measured, known, here)
    yield _plan(measured, planned)
    if measured.device:
        fits = measured.peak < measured.vram
        yield Line("fits the card", _gib(measured.peak), f"has {_gib(measured.vram)}", _check(fits))


def _latency(measured: Measured, known: Sequence[Published], here: Published | None) -> Line:
    text = f"{measured.idle_latency:.2f} s"
    if here is None:
        told = ", ".join(f"{each.card} {each.seconds:g} s" for each in known)
        return Line("one image, idle", text, told or "nothing published", Verdict.NOTE)
    close = measured.idle_latency <= _SLOWER * here.seconds
    return Line("one image, idle", text, f"published {here.seconds:g} s", _check(close))


def _throughput(level: Level, first: Level) -> Line:
    clients = f"{level.clients} client" + ("s" if level.clients > 1 else "")
    text = f"{level.images_per_minute:.1f} images/min, {level.latency:.2f} s each"
    if level.errors:
        return Line(clients, text, f"{level.errors} failed", Verdict.FAIL)
    if level is first:
        return Line(clients, text, "", _check(level.images_per_minute > 0))
    keeps = level.images_per_minute >= _KEEPS * first.images_per_minute
    factor = level.images_per_minute / max(first.images_per_minute, 1e-9)
    return Line(clients, text, f"{factor:.2f} times {first.clients} client", _check(keeps))


def _memory(measured: Measured, known: Sequence[Published], here: Published | None) -> Line:
    text = f"{measured.peak / 1e9:.1f} GB"
    if here is None:
        told = ", ".join(f"{each.card} {each.memory_gb:g} GB" for each in known)
        return Line("peak memory", text, told or "nothing published", Verdict.NOTE)
    close = measured.peak <= _LARGER * here.memory_gb * 1e9
    return Line("peak memory", text, f"published {here.memory_gb:g} GB", _check(close))


def _plan(measured: Measured, planned: int | None) -> Line:
    if planned is None or not measured.device:
        why = "planned for cards only" if planned is not None else "koala plan: no word on this"
        return Line("peak by plan", _gib(measured.peak), why, Verdict.NOTE)
    close = abs(measured.peak - planned) <= _OFF_PLAN * planned
    return Line("peak by plan", _gib(measured.peak), f"planned {_gib(planned)}", _check(close))


def _check(is_fine: bool) -> Verdict:
    return Verdict.OK if is_fine else Verdict.FAIL


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"
