"""How much of its GPU's memory a worker takes."""

import torch

from koala.workers import Vram


def vram_of(device: torch.device, weights: int) -> Vram | None:
    """The memory of ``device``, ``weights`` bytes of it the model's; ``None`` if it is no GPU.

    May be called from any thread.
    """
    if device.type != "cuda":
        return None
    free, total = torch.cuda.mem_get_info(device)
    return Vram(
        total_bytes=total,
        free_bytes=free,
        held_bytes=torch.cuda.memory_reserved(device),
        weights_bytes=weights,
    )
