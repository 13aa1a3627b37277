"""What a measured figure is held against: published figures, and ``koala plan``."""

import json
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from bench.processes import python_module
from worker.simulation.published import PROFILES

# What torch calls the cards of the paper.
_CARDS: Final[Mapping[str, str]] = {
    "RTX 3060 Ti": "3060ti",
    "RTX 2080 Ti": "2080ti",
    "RTX 4090": "4090",
}
# GB at the peak of one image, as published beside the latencies.
_MEMORY_GB: Final[Mapping[str, float]] = {
    "3060ti/koala-turbo-700m": 5.3,
    "2080ti/koala-turbo-700m": 4.7,
    "4090/koala-turbo-700m": 4.9,
    "3060ti/koala-turbo-1b": 6.1,
    "2080ti/koala-turbo-1b": 5.5,
    "4090/koala-turbo-1b": 5.7,
    "3060ti/koala-lightning-700m": 6.8,
    "2080ti/koala-lightning-700m": 8.2,
    "4090/koala-lightning-700m": 8.3,
    "3060ti/koala-lightning-1b": 7.2,
    "2080ti/koala-lightning-1b": 8.9,
    "4090/koala-lightning-1b": 9.1,
}


@dataclass(frozen=True, slots=True)
class Published:
    """Latency of one image in seconds, and its peak memory in GB, on one card."""

    card: str
    seconds: float
    memory_gb: float


def published(model: str, side: int) -> list[Published]:
    """What was published of a model at a size, for every card; empty: nothing."""
    found = []
    for name, profile in PROFILES.items():
        card, _, kind = name.partition("/")
        if kind == model and profile.size == (side, side):
            found.append(Published(card, profile.latency, _MEMORY_GB[name]))
    return found


def published_card(device: str) -> str | None:
    """The key of a card of the paper by the device's name; ``None``: another one."""
    # "RTX 4090 Laptop GPU" is another card than the RTX 4090.
    if "Laptop" in device or "D" in device.split():
        return None
    return next((key for name, key in _CARDS.items() if device.endswith(name)), None)


def planned_peak(model: str, size: str, vram: int) -> int | None:
    """Peak bytes that ``koala plan`` foresees on a card of ``vram`` bytes; ``None``: it cannot."""
    command = python_module("koala", "plan", model, "--vram", str(vram), "--size", size, "--json")
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        return None
    plan = json.loads(done.stdout)
    if plan.get("chosen") is None:
        return None
    return int(plan["residencies"][plan["chosen"]]["peak"])
