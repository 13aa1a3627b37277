"""What one tick of the engine did and how long it took."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

Phase: TypeAlias = Literal["encode", "unet", "scheduler", "decode"]


@dataclass(frozen=True, slots=True)
class Tick:
    """A tick, for metrics.

    Args:
        rows: Rows of the U-Net call; 0 if there was none.
        samples: Samples in the U-Net call.
        shape: Latent shape (channels, height, width) of these samples; ``None`` without a call.
        decoded: Images decoded.
        encode_seconds: Prompts, initial noise and schedules of the samples admitted.
        unet_seconds: The U-Net call, its inputs put together included.
        scheduler_seconds: Guidance and scheduler steps.
        decode_seconds: The VAE's decoder and the conversion to 8 bits.
    """

    rows: int = 0
    samples: int = 0
    shape: tuple[int, int, int] | None = None
    decoded: int = 0
    encode_seconds: float = 0.0
    unet_seconds: float = 0.0
    scheduler_seconds: float = 0.0
    decode_seconds: float = 0.0


@dataclass(slots=True)
class TickRecorder:
    """Collects what becomes a :class:`Tick`."""

    rows: int = 0
    samples: int = 0
    shape: tuple[int, int, int] | None = None
    decoded: int = 0
    _seconds: dict[Phase, float] = field(default_factory=dict)

    @contextmanager
    def phase(self, name: Phase) -> Iterator[None]:
        """Count the time inside towards ``name``, also if it ends in an exception."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[name] = self._seconds.get(name, 0.0) + time.perf_counter() - start

    def finish(self) -> Tick:
        """The record."""
        seconds = self._seconds
        return Tick(
            rows=self.rows,
            samples=self.samples,
            shape=self.shape,
            decoded=self.decoded,
            encode_seconds=seconds.get("encode", 0.0),
            unet_seconds=seconds.get("unet", 0.0),
            scheduler_seconds=seconds.get("scheduler", 0.0),
            decode_seconds=seconds.get("decode", 0.0),
        )
