"""The device's memory: what is there, what a call took, and what running out looks like."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Final, Protocol

import torch

from worker.engine import device

# Left to the driver, to fragmentation and to other programs on the card.
RESERVE_BYTES: Final = 256 * 2**20

# What libraries say that torch's own allocator does not ask for memory: a CPU's, cuBLAS, cuDNN,
# which finds no engine where it gets no workspace, and the driver as it loads a kernel.
_MESSAGES: Final = (
    "can't allocate memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_NOT_INITIALIZED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "unable to find an engine to execute this computation",
    "CUDA error: out of memory",
)


class DoesNotFit(Exception):
    """A sample needs more memory than the device has for it, even alone."""

    def __init__(self, what: str, needed: int | None, free: int | None) -> None:
        numbers = []
        if needed is not None:
            numbers.append(f"needs {gib(needed)}")
        if free is not None:
            numbers.append(f"{gib(free)} free")
        told = ": " + ", ".join(numbers) if numbers else ""
        super().__init__(f"{what} does not fit into the device's memory{told}")


@dataclass(slots=True)
class Peak:
    """Bytes that a call took at its peak beyond what lived before it; ``None``: not measurable."""

    bytes: int | None = None


class DeviceMemory(Protocol):
    """One device's memory as the engine sees it. Sizes are in bytes."""

    def available(self) -> int | None:
        """What calls may still take; ``None`` where that cannot be known."""

    def peak(self) -> AbstractContextManager[Peak]:
        """Measure the peak of what happens inside the context."""

    def release(self) -> None:
        """Give back what is cached but not in use."""


class HostMemory:
    """A CPU's memory, of which nobody tells what a single call took."""

    def available(self) -> int | None:
        """Unknown: the kernel promises memory that it does not have."""
        return None

    @contextmanager
    def peak(self) -> Iterator[Peak]:
        """Measures nothing."""
        yield Peak()

    def release(self) -> None:
        """Nothing is cached."""


class CudaMemory:
    """A CUDA device's memory.

    Args:
        which: Which one.
        budget: Most bytes that this process may take in all, weights included; ``None``: what is
            free less a reserve, so that other programs on the card are minded.
    """

    def __init__(self, which: torch.device, budget: int | None = None) -> None:
        self._device = which
        self._budget = budget

    def available(self) -> int | None:
        """What calls may still take: free on the device or cached by torch, less the reserve."""
        allocated = device.allocated_bytes(self._device)
        cached = device.reserved_bytes(self._device) - allocated
        room = device.free_bytes(self._device) + cached - RESERVE_BYTES
        if self._budget is not None:
            room = min(room, self._budget - allocated)
        return max(0, room)

    @contextmanager
    def peak(self) -> Iterator[Peak]:
        """Measure the peak of what happens inside the context."""
        peak = Peak()
        before = device.allocated_bytes(self._device)
        device.forget_peak(self._device)
        yield peak
        peak.bytes = max(0, device.peak_bytes(self._device) - before)

    def release(self) -> None:
        """Give back what is cached but not in use."""
        device.release(self._device)


def memory_of(which: torch.device, budget: int | None = None) -> DeviceMemory:
    """The memory of a device, of which this process may take ``budget`` bytes."""
    return CudaMemory(which, budget) if device.is_cuda(which) else HostMemory()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` says that there is not enough memory."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(message in str(error) for message in _MESSAGES)


def is_fatal(error: BaseException) -> bool:
    """Whether the device is lost to this process, so that every further call would fail too."""
    return isinstance(error, torch.AcceleratorError) and not is_out_of_memory(error)


def gib(size: int) -> str:
    """Bytes for people."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**29 else f"{size / 2**20:.1f} MiB"
