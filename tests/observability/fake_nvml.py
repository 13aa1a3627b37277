"""A stand-in for NVIDIA's library, for machines without a GPU."""

from types import SimpleNamespace
from typing import Any


class FakeNvml:
    """``pynvml`` with one GPU.

    Args:
        broken: Names of functions that fail.
    """

    NVML_TEMPERATURE_GPU = 0

    class NVMLError(Exception):
        """As the library's own."""

    def __init__(self, *broken: str) -> None:
        self._broken = broken
        self.asked: list[str] = []

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("nvml") and name in self._broken:
            return self._fail
        return super().__getattribute__(name)

    def _fail(self, *_: object) -> None:
        raise self.NVMLError("Not Supported")

    def nvmlInit(self) -> None:
        """Begin."""

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> object:
        """The GPU."""
        self.asked.append(uuid)
        return object()

    def nvmlDeviceGetUtilizationRates(self, gpu: object) -> SimpleNamespace:
        """In percent."""
        return SimpleNamespace(gpu=87, memory=40)

    def nvmlDeviceGetTemperature(self, gpu: object, sensor: int) -> int:
        """In degrees Celsius."""
        return 66

    def nvmlDeviceGetPowerUsage(self, gpu: object) -> int:
        """In milliwatts."""
        return 312_500

    def nvmlDeviceGetEnforcedPowerLimit(self, gpu: object) -> int:
        """In milliwatts."""
        return 700_000
