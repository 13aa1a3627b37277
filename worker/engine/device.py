"""All that is said to CUDA; no other file of the worker does."""

import ctypes
from collections.abc import Mapping
from typing import Any, Final, Protocol, TypeAlias

import torch

Weights: TypeAlias = Mapping[str, torch.Tensor]

_CUDA: Final = "cuda"
# torch leaves its streams without types.
_STREAMS: Final[Any] = torch.cuda
# glibc keeps what was freed unless told; other C libraries have no such call and no such need.
_TRIM: Final[Any] = getattr(ctypes.CDLL(None), "malloc_trim", None)


def choose(device: str) -> torch.device:
    """The device that ``auto``, ``cpu``, ``cuda`` or ``cuda:N`` names.

    Raises:
        ValueError: It is none of them, or there is no such card.
    """
    if device == "auto":
        device = _CUDA if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise ValueError(f"{device!r} is not a device: use auto, cpu, cuda or cuda:N") from None
    if is_cuda(chosen) and (chosen.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise ValueError(f"the device {device} is not here: torch sees {count} CUDA devices")
    return chosen


def is_cuda(device: torch.device) -> bool:
    """Whether it is a CUDA device."""
    return device.type == _CUDA


def computes_bfloat16() -> bool:
    """Whether the current CUDA device computes in bfloat16 rather than emulating it."""
    supported: bool = torch.cuda.is_bf16_supported(including_emulation=False)
    return supported


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was told; a CPU always has."""
    if is_cuda(device):
        torch.cuda.synchronize(device)


def free_bytes(device: torch.device) -> int:
    """What no process has taken of the CUDA device's memory."""
    free, _ = torch.cuda.mem_get_info(device)
    return free


def allocated_bytes(device: torch.device) -> int:
    """What live tensors of this process take on the CUDA device."""
    return torch.cuda.memory_allocated(device)


def reserved_bytes(device: torch.device) -> int:
    """What torch holds of the CUDA device's memory in this process, in use or not."""
    return torch.cuda.memory_reserved(device)


def peak_bytes(device: torch.device) -> int:
    """The most that live tensors took since :func:`forget_peak`."""
    return torch.cuda.max_memory_allocated(device)


def forget_peak(device: torch.device) -> None:
    """Begin to look for the peak anew."""
    torch.cuda.reset_peak_memory_stats(device)


def release(device: torch.device) -> None:
    """Give back what this process holds of the device's memory and does not use."""
    if is_cuda(device):
        torch.cuda.empty_cache()
    elif _TRIM is not None:
        _TRIM(0)


class Upload(Protocol):
    """Weights on their way to the device."""

    def wait(self) -> Weights:
        """The weights on the device, for calls that are made from now on."""


class Uploads(Protocol):
    """Brings weights from the CPU's memory to the device, beside what the device computes."""

    def keep(self, tensor: torch.Tensor) -> torch.Tensor:
        """``tensor`` in the CPU's memory, where it can be uploaded from quickly."""

    def begin(self, weights: Weights) -> Upload:
        """Begin to upload what :meth:`keep` returned."""


class PlainUploads:
    """Copies and waits; for devices that do one thing at a time.

    Args:
        device: Where to.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def keep(self, tensor: torch.Tensor) -> torch.Tensor:
        """As :meth:`Uploads.keep`."""
        return tensor.to("cpu")

    def begin(self, weights: Weights) -> Upload:
        """As :meth:`Uploads.begin`. A copy is made even where the device is the CPU."""
        return _Uploaded({k: tensor.to(self._device, copy=True) for k, tensor in weights.items()})


class _Uploaded:
    def __init__(self, weights: Weights) -> None:
        self._weights = weights

    def wait(self) -> Weights:
        return self._weights


class CudaUploads:
    """Copies from page-locked memory on a stream of its own.

    The memory comes from the computing stream's pool, where it can be used again by whatever runs
    next; so a copy begins when the device has done what it was told before.

    Args:
        device: Where to.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = _STREAMS.Stream(device)

    def keep(self, tensor: torch.Tensor) -> torch.Tensor:
        """As :meth:`Uploads.keep`."""
        return tensor.to("cpu").pin_memory()

    def begin(self, weights: Weights) -> Upload:
        """As :meth:`Uploads.begin`."""
        there = {k: torch.empty_like(t, device=self._device) for k, t in weights.items()}
        self._stream.wait_stream(_STREAMS.current_stream(self._device))
        with _STREAMS.stream(self._stream):
            for name, tensor in weights.items():
                there[name].copy_(tensor, non_blocking=True)
                # Nobody may be given this memory before the copy is done, even if nobody waits.
                there[name].record_stream(self._stream)
        return _CudaUpload(there, self._stream.record_event(), self._device)


class _CudaUpload:
    def __init__(self, weights: Weights, done: Any, device: torch.device) -> None:
        self._weights = weights
        self._done = done
        self._device = device

    def wait(self) -> Weights:
        _STREAMS.current_stream(self._device).wait_event(self._done)
        return self._weights


def uploads_to(device: torch.device) -> Uploads:
    """How weights get to ``device``."""
    return CudaUploads(device) if is_cuda(device) else PlainUploads(device)
