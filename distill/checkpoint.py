"""Checkpoints, averaged weights, budgets and the learning-rate schedule, shared by all phases."""

from __future__ import annotations

import copy
import math
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.swa_utils import get_ema_multi_avg_fn

from distill import parallel

M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True, slots=True)
class Budget:
    """How long a phase trains: optimiser steps, or seconds of training time.

    A budget in steps makes a run repeatable; one in seconds makes it end on time.
    """

    steps: int | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        given = [value for value in (self.steps, self.seconds) if value is not None]
        if len(given) != 1 or given[0] <= 0:
            raise ValueError(f"a budget is either steps > 0 or seconds > 0, got {self}")

    def fraction(self, step: int, elapsed: float) -> float:
        """How much is used up, 0..1."""
        if self.steps is not None:
            return min(1.0, step / self.steps)
        assert self.seconds is not None
        return min(1.0, elapsed / self.seconds)


def learning_rate(peak: float, step: int, fraction: float, *, hold: float = 0.5) -> float:
    """Warm up over 100 steps, hold ``peak``, then fall on a cosine to 1 % of it."""
    warm = min(1.0, (step + 1) / 100)
    if fraction <= hold:
        return peak * warm
    cosine = 0.5 * (1.0 + math.cos(math.pi * (fraction - hold) / (1.0 - hold)))
    return peak * warm * (0.01 + 0.99 * cosine)


class Average(Generic[M]):
    """Exponential moving average of a module's parameters, warmed up as in TensorFlow's EMA."""

    def __init__(self, module: M, decay: float = 0.999) -> None:
        self.decay = decay
        self.module = copy.deepcopy(module).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, module: M, step: int) -> None:
        """Take one step towards ``module``'s weights."""
        decay = min(self.decay, (1 + step) / (10 + step))
        towards = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
        averages = [p.detach() for p in self.module.parameters()]
        towards(averages, [p.detach() for p in module.parameters()], step)


class TrainState(Generic[M]):
    """Everything one training phase needs in order to go on as if it had not stopped.

    Random draws depend only on the seed, the process and the step, so they need no saving.
    """

    def __init__(self, module: M, optimizer: AdamW, seed: int) -> None:
        self.module = module
        self.optimizer = optimizer
        self.average: Average[M] = Average(module)
        self.seed = seed
        self.step = 0
        self.elapsed = 0.0
        self._marked = time.monotonic()

    def shared_rng(self) -> np.random.Generator:
        """Draws of this step on which all processes agree."""
        return np.random.default_rng((self.seed, self.step))

    def own_rng(self) -> tuple[np.random.Generator, torch.Generator]:
        """Draws of this step for this process alone."""
        rng = np.random.default_rng((self.seed, self.step, 1 + parallel.rank()))
        return rng, torch.Generator().manual_seed(int(rng.integers(2**62)))

    def advance(self, loss: Tensor, rate: float) -> None:
        """Take one optimiser step, and count it and the time since the last one."""
        trained = [p for group in self.optimizer.param_groups for p in group["params"]]
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        now = time.monotonic()
        self.elapsed += parallel.average_gradients(trained, now - self._marked)
        self._marked = now
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        self.optimizer.step()
        self.average.update(self.module, self.step)
        self.step += 1

    def start_clock(self) -> None:
        """Leave out the time since the last step (loading, exporting)."""
        self._marked = time.monotonic()

    def save(self, path: Path) -> None:
        """Write a checkpoint; an interrupted write leaves the previous one in place."""
        if parallel.rank() != 0:
            return
        save_atomically(
            {
                "module": self.module.state_dict(),
                "average": self.average.module.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "step": self.step,
                "elapsed": self.elapsed,
            },
            path,
        )

    def load(self, path: Path) -> bool:
        """Restore a checkpoint; False where there is none.

        Raises:
            RuntimeError: the checkpoint belongs to a model of another shape.
        """
        # No process may look before the one that writes is done with an earlier phase.
        parallel.wait_for_all()
        if not path.is_file():
            return False
        state: dict[str, Any] = torch.load(path, weights_only=True)
        self.module.load_state_dict(state["module"])
        self.average.module.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]
        self.elapsed = state["elapsed"]
        self.start_clock()
        return True


def save_atomically(value: Mapping[str, Any], path: Path) -> None:
    """``torch.save`` through a temporary file beside ``path``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.partial")
    torch.save(dict(value), partial)
    partial.replace(path)
