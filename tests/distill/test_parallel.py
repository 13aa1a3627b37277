"""Data-parallel training."""

import json
import subprocess
import sys

import torch

from distill import parallel

SCRIPT = """
import json, sys, torch
from distill import parallel
rank, port = int(sys.argv[1]), int(sys.argv[2])
parallel.join(rank, 2, port)
weight = torch.zeros(2, 2, requires_grad=True)
bias = torch.zeros(3, requires_grad=True)
(weight.sum() * (rank + 1) + bias.sum() * 10 * rank).backward()
clock = parallel.average_gradients([weight, bias], extra=float(rank))
parallel.wait_for_all()
found = [parallel.rank(), parallel.workers(), weight.grad.tolist(), bias.grad.tolist(), clock]
parallel.leave()
print(json.dumps(found))
"""


def test_two_processes_average_their_gradients_and_clocks() -> None:
    port = str(parallel.free_port())
    started = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(rank), port], stdout=subprocess.PIPE, text=True
        )
        for rank in range(2)
    ]
    for rank, process in enumerate(started):
        output, _ = process.communicate(timeout=240)
        assert json.loads(output) == [rank, 2, [[1.5, 1.5], [1.5, 1.5]], [5.0, 5.0, 5.0], 0.5]


def test_one_process_needs_no_group() -> None:
    parallel.join(0, 1, 0)
    weight = torch.ones(2, requires_grad=True)
    weight.sum().backward()
    assert parallel.average_gradients([weight], 3.0) == 3.0
    assert (parallel.rank(), parallel.workers()) == (0, 1)
    parallel.leave()
