"""Prometheus metrics of the accelerator's memory, as torch sees it."""

from collections.abc import Iterator

import torch
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector


class VramCollector(Collector):
    """The memory of one CUDA device, read when somebody scrapes.

    Args:
        device: Which one.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """All families, as they stand now. Sizes are in bytes."""
        free, total = torch.cuda.mem_get_info(self._device)
        families = {
            "koala_vram_total_bytes": ("Memory of the device.", total),
            "koala_vram_free_bytes": ("Memory of the device that no program holds.", free),
            "koala_vram_allocated_bytes": (
                "Memory that live tensors take.",
                torch.cuda.memory_allocated(self._device),
            ),
            "koala_vram_reserved_bytes": (
                "Memory that torch holds.",
                torch.cuda.memory_reserved(self._device),
            ),
            "koala_vram_peak_bytes": (
                "Most memory that live tensors took since a size was last measured.",
                torch.cuda.max_memory_allocated(self._device),
            ),
        }
        for name, (text, size) in families.items():
            yield GaugeMetricFamily(name, text, value=size)
