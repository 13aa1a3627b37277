"""A stand-in for the memory of a CUDA card, which machines that run these tests lack."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from worker.engine import ResidentPipeline
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
