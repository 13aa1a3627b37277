"""Who draws next, and how many at once: the engine's policy, without a model and without torch.

The engine drives it with real steps; ``koala simulate`` drives the same code with a curve.
"""

from worker.batching.batcher import Batchable, Batcher, Size
from worker.batching.curve import StepCurve
from worker.batching.pressure import Pressure
from worker.batching.turns import DeficitRoundRobin

__all__ = ["Batchable", "Batcher", "DeficitRoundRobin", "Pressure", "Size", "StepCurve"]
