"""Data-parallel training over processes of one machine.

On a few CPU cores, one single-threaded process per core outruns one process with a thread per
core: processes meet once a step, threads at every operator.  The processes hold the same
weights, draw different batches, and average their gradients.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from datetime import timedelta

import torch
from torch import Tensor
from torch import distributed as dist


def free_port() -> int:
    """A TCP port on the loopback interface that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def join(rank: int, workers: int, port: int) -> None:
    """Join process ``rank`` of ``workers``; a single worker needs no group."""
    if workers > 1:
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        # The first process evaluates and exports while the others wait for it.
        dist.init_process_group(
            "gloo", rank=rank, world_size=workers, timeout=timedelta(minutes=30)
        )


def leave() -> None:
    """Undo ``join``."""
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    """This process's number, 0 without a group."""
    return dist.get_rank() if dist.is_initialized() else 0


def workers() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def wait_for_all() -> None:
    """Return once every process has called this."""
    if dist.is_initialized():
        dist.barrier()


def average_gradients(parameters: Sequence[Tensor], extra: float) -> float:
    """Average the gradients over all processes, in place, and return the average of ``extra``.

    Both travel in one message, so that every process reads the same clock.
    """
    if not dist.is_initialized():
        return extra
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([*(g.flatten() for g in gradients), torch.tensor([extra])])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    parts = torch.split(flat, [*(g.numel() for g in gradients), 1])
    for gradient, part in zip(gradients, parts, strict=False):
        gradient.copy_(part.view_as(gradient))
    return float(parts[-1])
