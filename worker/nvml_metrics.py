"""Prometheus metrics of the GPU itself, from NVIDIA's own library, where that is there."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import structlog
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

log = structlog.get_logger()

_MILLIWATTS: Final = 1000.0
_PERCENT: Final = 100.0


class NoNvml(Exception):
    """NVIDIA's library is not there or does not know the device; the message says which."""


class NvmlCollector(Collector):
    """Utilisation, temperature and power of one GPU, read when somebody scrapes.

    Args:
        uuid: The GPU's, as torch has it, with or without ``GPU-`` before it.
        nvml: The module ``pynvml``.

    Raises:
        NoNvml: The library does not start, or does not know the GPU.
    """

    def __init__(self, uuid: str, nvml: Any) -> None:
        self._nvml = nvml
        try:
            nvml.nvmlInit()
            self._gpu = nvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid.removeprefix('GPU-')}")
        except nvml.NVMLError as error:
            raise NoNvml(f"NVML: {error}") from None

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """All families that the GPU has; a card without one of the sensors lacks its own."""
        nvml, gpu = self._nvml, self._gpu
        readings: Mapping[str, tuple[str, Callable[[], float]]] = {
            "koala_gpu_utilization_ratio": (
                "Share of the last moments in which the GPU was at work, 0 to 1.",
                lambda: nvml.nvmlDeviceGetUtilizationRates(gpu).gpu / _PERCENT,
            ),
            "koala_gpu_temperature_celsius": (
                "Temperature of the GPU.",
                lambda: nvml.nvmlDeviceGetTemperature(gpu, nvml.NVML_TEMPERATURE_GPU),
            ),
            "koala_gpu_power_watts": (
                "Power that the card draws.",
                lambda: nvml.nvmlDeviceGetPowerUsage(gpu) / _MILLIWATTS,
            ),
            "koala_gpu_power_limit_watts": (
                "Power that the card may draw.",
                lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(gpu) / _MILLIWATTS,
            ),
        }
        for name, (text, read) in readings.items():
            try:
                value = float(read())
            except nvml.NVMLError as error:
                log.debug("a reading of the GPU is missing", metric=name, error=str(error))
                continue
            yield GaugeMetricFamily(name, text, value=value)


def nvml_collector(uuid: str) -> NvmlCollector | None:
    """The collector for a GPU, or ``None`` with a line in the log that says why there is none."""
    try:
        import pynvml

        return NvmlCollector(uuid, pynvml)
    except ModuleNotFoundError:
        reason = "nvidia-ml-py is not installed"
    except NoNvml as error:
        reason = str(error)
    log.warning("no metrics of the GPU's load, temperature and power", reason=reason)
    return None
