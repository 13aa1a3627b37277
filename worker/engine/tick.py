"""What one tick of the engine did and how long it took."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from worker.batching import Size

Phase: TypeAlias = Literal["encode", "unet", "scheduler", "preview", "decode"]


@dataclass(frozen=True, slots=True)
class Tick:
    """A tick, for metrics.

    Args:
        rows: Rows of the U-Net call; 0 if there was none.
        samples: Samples in the U-Net call.
        size: Width and height of these samples in pixels; ``None`` without a call.
        decoded: Images that a decoder call was made for; one image's tiles count one each.
        upcasts: Images or tiles decoded again in fp32 because they overflowed in fp16.
        out_of_memory: Calls that ran out of memory.
        put_back: Samples that had to wait again for that.
        previews_dropped: Previews that were due and are not drawn, for want of time.
        previews_failed: Previews that could not be drawn.
        encode_seconds: Prompts, initial noise and schedules of the samples admitted.
        unet_seconds: The U-Net call, its inputs put together included.
        scheduler_seconds: Guidance and scheduler steps.
        preview_seconds: Previews of samples under way.
        decode_seconds: The VAE's decoder and the conversion to 8 bits.
    """

    rows: int = 0
    samples: int = 0
    size: Size | None = None
    decoded: int = 0
    upcasts: int = 0
    out_of_memory: int = 0
    put_back: int = 0
    previews_dropped: int = 0
    previews_failed: int = 0
    encode_seconds: float = 0.0
    unet_seconds: float = 0.0
    scheduler_seconds: float = 0.0
    preview_seconds: float = 0.0
    decode_seconds: float = 0.0


@dataclass(slots=True)
class TickRecorder:
    """Collects what becomes a :class:`Tick`."""

    rows: int = 0
    samples: int = 0
    size: Size | None = None
    decoded: int = 0
    upcasts: int = 0
    out_of_memory: int = 0
    put_back: int = 0
    previews_dropped: int = 0
    previews_failed: int = 0
    _seconds: dict[Phase, float] = field(default_factory=dict)

    @contextmanager
    def phase(self, name: Phase) -> Iterator[None]:
        """Count the time inside towards ``name``, also if it ends in an exception."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[name] = self._seconds.get(name, 0.0) + time.perf_counter() - start

    def seconds(self, name: Phase) -> float:
        """What was counted towards ``name`` so far."""
        return self._seconds.get(name, 0.0)

    def finish(self) -> Tick:
        """The record."""
        seconds = self._seconds
        return Tick(
            rows=self.rows,
            samples=self.samples,
            size=self.size,
            decoded=self.decoded,
            upcasts=self.upcasts,
            out_of_memory=self.out_of_memory,
            put_back=self.put_back,
            previews_dropped=self.previews_dropped,
            previews_failed=self.previews_failed,
            encode_seconds=seconds.get("encode", 0.0),
            unet_seconds=seconds.get("unet", 0.0),
            scheduler_seconds=seconds.get("scheduler", 0.0),
            preview_seconds=seconds.get("preview", 0.0),
            decode_seconds=seconds.get("decode", 0.0),
        )
