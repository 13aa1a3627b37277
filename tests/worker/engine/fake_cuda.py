"""Stand-ins for a CUDA card's memory and streams, which machines that run these tests lack."""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from worker.engine import ResidentPipeline
from worker.engine.device import Weights
from worker.engine.memory import Peak

MESSAGE = "CUDA out of memory. Tried to allocate 2.00 GiB. (an error made by a test)"


class FakeCudaMemory:
    """Counts what calls of a pipeline would take, and lets those fail that would take too much.

    A U-Net call takes bytes by rows and pixels, a decoder call by images and pixels.

    Args:
        free: Bytes that calls may take.
        step: Bytes of a U-Net call per row and pixel.
        decode: Bytes of a decoder call per pixel.
    """

    def __init__(self, free: int, step: int = 0, decode: int = 0) -> None:
        self.free = free
        self.step = step
        self.decode = decode
        self.released = 0
        self.refused = 0
        self.rows: list[int] = []
        self._peak = 0

    def install(self, pipeline: ResidentPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let the pipeline's calls take this memory."""
        predict_noise, decode = pipeline.predict_noise, pipeline.decode
        scale = pipeline.vae_scale_factor**2

        def counted_predict_noise(latents: torch.Tensor, *args: torch.Tensor) -> torch.Tensor:
            self._take(self.step * len(latents) * latents[0, 0].numel() * scale)
            self.rows.append(len(latents))
            return predict_noise(latents, *args)

        def counted_decode(latents: torch.Tensor) -> torch.Tensor:
            self._take(self.decode * len(latents) * latents[0, 0].numel() * scale)
            return decode(latents)

        monkeypatch.setattr(pipeline, "predict_noise", counted_predict_noise)
        monkeypatch.setattr(pipeline, "decode", counted_decode)

    def available(self) -> int:
        """As :meth:`DeviceMemory.available`."""
        return self.free

    @contextmanager
    def peak(self) -> Iterator[Peak]:
        """As :meth:`DeviceMemory.peak`."""
        peak = Peak()
        self._peak = 0
        yield peak
        peak.bytes = self._peak

    def release(self) -> None:
        """As :meth:`DeviceMemory.release`."""
        self.released += 1

    def _take(self, size: int) -> None:
        if size > self.free:
            self.refused += 1
            raise torch.OutOfMemoryError(MESSAGE)
        self._peak = max(self._peak, size)


class FakeUploads:
    """Copies weights to a device that is the CPU under another name, and tells what is there.

    Args:
        log: What happens, in order: ``begin`` and ``wait``.
    """

    def __init__(self, log: list[str]) -> None:
        self.log = log
        self._there: list[weakref.ref[torch.Tensor]] = []

    @property
    def bytes_there(self) -> int:
        """Bytes of the copies that somebody still holds."""
        return sum(tensor.nbytes for ref in self._there if (tensor := ref()) is not None)

    def keep(self, tensor: torch.Tensor) -> torch.Tensor:
        """As :meth:`Uploads.keep`."""
        return tensor

    def begin(self, weights: Weights) -> "FakeUpload":
        """As :meth:`Uploads.begin`."""
        self.log.append("begin")
        there = {name: tensor.clone() for name, tensor in weights.items()}
        self._there += [weakref.ref(tensor) for tensor in there.values()]
        return FakeUpload(self.log, there)


class FakeUpload:
    """Weights that are there at once, and the log of who asked for them."""

    def __init__(self, log: list[str], weights: Weights) -> None:
        self._log = log
        self._weights = weights

    def wait(self) -> Weights:
        """As :meth:`Upload.wait`."""
        self._log.append("wait")
        return self._weights


class FakeStreams:
    """``torch.cuda`` as far as uploads use it: streams that run everything at once and tell of it.

    Args:
        log: What was asked for, in order.
    """

    def __init__(self, log: list[str]) -> None:
        self._log = log

    def Stream(self, device: torch.device) -> "FakeStream":
        """A stream of its own."""
        return FakeStream("copy", self._log)

    def current_stream(self, device: torch.device) -> "FakeStream":
        """The one that computes."""
        return FakeStream("compute", self._log)

    @contextmanager
    def stream(self, stream: "FakeStream") -> Iterator[None]:
        """Inside, operators go to ``stream``."""
        self._log.append(f"into {stream.name}")
        yield
        self._log.append("back to compute")


class FakeStream:
    """One of these streams."""

    def __init__(self, name: str, log: list[str]) -> None:
        self.name = name
        self._log = log

    def wait_stream(self, other: "FakeStream") -> None:
        """Go on when the other one has come so far."""
        self._log.append(f"{self.name} waits for {other.name}")

    def record_event(self) -> str:
        """A mark of how far it has come."""
        self._log.append(f"mark in {self.name}")
        return "mark"

    def wait_event(self, event: str) -> None:
        """Go on when that mark is reached."""
        self._log.append(f"{self.name} waits for the {event}")
