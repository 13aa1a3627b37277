"""Who draws next, and how many at once: the engine's policy, without a model and without torch.

The engine drives it with real steps; ``koala simulate`` drives the same code with a curve.
"""

from worker.batching.batcher import Batchable, Batcher, Size
from worker.batching.chunks import LARGEST_WHOLE, PIXEL_BUDGET, images_per_chunk
from worker.batching.curve import LADDER, StepCurve
from worker.batching.looks import Looks
from worker.batching.pressure import Pressure
from worker.batching.sizes import curve_at, nearest_size, profitable_rows
from worker.batching.turns import DeficitRoundRobin

__all__ = [
    "LADDER",
    "LARGEST_WHOLE",
    "PIXEL_BUDGET",
    "Batchable",
    "Batcher",
    "DeficitRoundRobin",
    "Looks",
    "Pressure",
    "Size",
    "StepCurve",
    "curve_at",
    "images_per_chunk",
    "nearest_size",
    "profitable_rows",
]
