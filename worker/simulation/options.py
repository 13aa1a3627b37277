"""The options of ``koala simulate`` as text, and the plan that they ask for."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from koala.curves import CurveFileError, read_curves
from worker.batching import Size
from worker.simulation.device import Device
from worker.simulation.gpu import Strategy
from worker.simulation.plan import Plan
from worker.simulation.published import PROFILES
from worker.simulation.workload import Clients, Load, Poisson, Workload

_DEFAULT_CLIENTS: Final = "1,2,4,8,16"
_MOST_REQUESTS: Final = 100_000
_MOST_CLIENTS: Final = 10_000
_MOST_GPUS: Final = 1_000

T = TypeVar("T", int, float)


class OptionError(ValueError):
    """An option that cannot be used; the message names it, in one line."""


@dataclass(frozen=True)
class Options:
    """The options as they were typed; ``None`` where one was left out."""

    profile: str | None = None
    curve: Path | None = None
    clients: str | None = None
    rate: str | None = None
    steps: str = "10"
    guidance: str = "3.5"
    size: str | None = None
    n: int = 1
    gpus: int = 1
    strategy: str | None = None
    max_rows: int | None = None
    target_step_ms: float | None = None
    requests: int = 400
    seed: int = 0

    def plan(self) -> Plan:
        """What they ask for.

        Raises:
            OptionError: One of them cannot be used.
        """
        _check("--n", self.n, 1, 10)
        _check("--gpus", self.gpus, 1, _MOST_GPUS)
        _check("--requests", self.requests, 10, _MOST_REQUESTS)
        loads = self._loads()
        sizes = _sizes(self.size) if self.size is not None else {}
        steps = _range("--steps", self.steps, int)
        guidance = _range("--guidance", self.guidance, float)
        if steps[0] < 1:
            raise OptionError(f"--steps: at least one step is needed, got {self.steps}.")
        if guidance[0] < 0:
            raise OptionError(f"--guidance: must be at least 0, got {self.guidance}.")
        device = self._device(tuple(sizes))
        return Plan(
            device=device,
            workload=Workload(sizes or {device.native_size: 1.0}, steps, guidance, self.n),
            loads=loads,
            strategies=self._strategies(),
            gpus=self.gpus,
            requests=self.requests,
            seed=self.seed,
        )

    def _device(self, sizes: tuple[Size, ...]) -> Device:
        if self.max_rows is not None and self.max_rows < 1:
            raise OptionError(f"--max-rows: must be at least 1, got {self.max_rows}.")
        target = None
        if self.target_step_ms is not None:
            if not 0 < self.target_step_ms < float("inf"):
                raise OptionError(f"--target-step-ms: must be above 0, got {self.target_step_ms}.")
            target = self.target_step_ms / 1000
        if self.profile is not None and self.curve is not None:
            raise OptionError("--curve: give either a profile or a curve, not both.")
        if self.curve is not None:
            try:
                return Device.measured(read_curves(self.curve), self.max_rows, target)
            except CurveFileError as error:
                raise OptionError(f"--curve: {error}") from None
        known = ", ".join(PROFILES)
        if self.profile is None:
            raise OptionError(f"--profile: say which GPU, or give a --curve; there are {known}.")
        if self.profile not in PROFILES:
            raise OptionError(f"--profile: there is no {self.profile!r}; there are {known}.")
        return PROFILES[self.profile].device(sizes, self.max_rows, target)

    def _loads(self) -> tuple[Load, ...]:
        if self.rate is not None:
            if self.clients is not None:
                raise OptionError("--rate: give either clients or a rate, not both.")
            rates = _numbers("--rate", self.rate, float)
            if any(not 0 < rate < float("inf") for rate in rates):
                raise OptionError(f"--rate: must be above 0, got {self.rate}.")
            return tuple(Poisson(rate) for rate in rates)
        text = self.clients or _DEFAULT_CLIENTS
        counts = _numbers("--clients", text, int)
        for count in counts:
            _check("--clients", count, 1, _MOST_CLIENTS)
            if count > self.requests:
                message = f"{count} clients need at least as many requests, got {self.requests}."
                raise OptionError(f"--requests: {message}")
        return tuple(Clients(count) for count in counts)

    def _strategies(self) -> tuple[Strategy, ...]:
        if self.strategy is None:
            return tuple(Strategy)
        chosen = []
        for name in self.strategy.split(","):
            if name.strip() not in set(Strategy):
                known = ", ".join(Strategy)
                raise OptionError(f"--strategy: there is no {name.strip()!r}; there are {known}.")
            chosen.append(Strategy(name.strip()))
        return tuple(dict.fromkeys(chosen))


def _check(name: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        raise OptionError(f"{name}: must be from {least} to {most}, got {value}.")


def _numbers(name: str, text: str, kind: Callable[[str], T]) -> list[T]:
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError:
        raise OptionError(f"{name}: numbers with commas between, got {text!r}.") from None


def _range(name: str, text: str, kind: Callable[[str], T]) -> tuple[T, T]:
    low, _, high = text.partition("..")
    try:
        first, last = kind(low), kind(high or low)
    except ValueError:
        raise OptionError(f"{name}: a number or LOW..HIGH, got {text!r}.") from None
    if not first <= last < float("inf"):
        raise OptionError(f"{name}: the range {text!r} is empty or endless.")
    return first, last


def _sizes(text: str) -> dict[Size, float]:
    """``1024x1024`` or ``1024x1024:3,512x512:1``."""
    sizes: dict[Size, float] = {}
    for part in text.split(","):
        size, _, weight = part.partition(":")
        width, _, height = size.strip().partition("x")
        try:
            key, share = (int(width), int(height)), float(weight or 1)
        except ValueError:
            message = f"--size: WIDTHxHEIGHT, or several with weights (512x512:2), got {text!r}."
            raise OptionError(message) from None
        if min(key) < 1 or not 0 < share < float("inf"):
            raise OptionError(f"--size: sides and weights must be above 0, got {part.strip()!r}.")
        if key in sizes:
            raise OptionError(f"--size: {size.strip()} is there twice.")
        sizes[key] = share
    return sizes
