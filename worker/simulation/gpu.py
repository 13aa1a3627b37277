"""One worker on the virtual clock: the engine's tick with a curve in the place of the model."""

from collections import deque
from dataclasses import dataclass
from enum import StrEnum

from worker.batching import Batcher, Size, images_per_chunk
from worker.simulation.device import Device
from worker.simulation.workload import Job, Sample


class Strategy(StrEnum):
    """When a worker takes requests; what it does with them is always the same."""

    STEP_LEVEL = "step-level"  # between any two steps, as koala's workers do
    WHOLE_BATCH = "whole-batch"  # a batch at a time: nobody joins before the last one has left
    ONE_BY_ONE = "one-by-one"


@dataclass(frozen=True, slots=True)
class Tick:
    """A tick of one worker.

    Args:
        began: Seconds.
        ended: Seconds.
        rows: Rows of the U-Net call; 0 if there was none.
        size: Width and height of its images in pixels; ``None`` without a call.
        decoded: The images that were done with it.
    """

    began: float
    ended: float
    rows: int
    size: Size | None
    decoded: tuple[Sample, ...]


class SimulatedWorker:
    """Takes jobs and draws them, one tick after the other.

    Args:
        device: How long it takes for what.
        strategy: When it takes jobs.
    """

    def __init__(self, device: Device, strategy: Strategy) -> None:
        self._device = device
        self._strategy = strategy
        self._batcher: Batcher[Sample] = Batcher(device.cap)
        self._denoised: deque[Sample] = deque()
        # Taken since the worker was last idle, while no tick has been run since.
        self._boarding: list[Sample] = []

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to do."""
        return not (self._batcher.waiting or self._batcher.rows or self._denoised)

    @property
    def samples(self) -> list[Sample]:
        """The images that it holds and has not decoded."""
        drawing = [s for size in self._batcher.sizes for s in self._batcher.members(size)]
        return [*self._denoised, *drawing, *self._batcher.heads(self._batcher.waiting)]

    def take(self, queue: deque[Job], now: float) -> None:
        """Take what is to be taken now from the front of the queue."""
        while queue and self._wants(queue[0]):
            job = queue.popleft()
            job.claimed = now
            for index in range(job.shape.n):
                sample = Sample(job, index, job.shape.steps)
                self._boarding.append(sample)
                self._batcher.add(sample)

    def tick(self, now: float) -> Tick:
        """Admit, choose, denoise, decode."""
        self._boarding.clear()
        self._admit()
        size = self._batcher.choose(self._device.seconds)
        rows, seconds = (0, 0.0) if size is None else self._denoise(size, now)
        decoded = self._decode()
        seconds += sum(self._device.image_seconds(sample.size) for sample in decoded)
        ended = now + self._device.tick_overhead_seconds + seconds
        return Tick(now, ended, rows, size, tuple(decoded))

    def _wants(self, job: Job) -> bool:
        if self._strategy is Strategy.STEP_LEVEL:
            return self._batcher.has_room
        if self.is_idle or self._strategy is Strategy.ONE_BY_ONE:
            return self.is_idle
        if not self._boarding or self._boarding[0].size != job.shape.size:
            return False
        rows = sum(sample.rows for sample in self._boarding) + job.shape.n * job.shape.rows
        return rows <= self._device.cap(job.shape.size)

    def _admit(self) -> None:
        # The engine's rule: denoised images pile up no higher than a batch.
        if len(self._denoised) < self._device.cap(self._device.native_size):
            self._batcher.admit()

    def _denoise(self, size: Size, now: float) -> tuple[int, float]:
        """A step of all of one size; its rows and seconds."""
        rows = self._batcher.rows_of(size)
        for sample in self._batcher.members(size):
            if sample.job.begun is None:
                sample.job.begun = now
            sample.steps_left -= 1
            if not sample.steps_left:
                self._batcher.remove(sample.key)
                self._denoised.append(sample)
        return rows, self._device.step_seconds(size, rows)

    def _decode(self) -> list[Sample]:
        """The next chunk: images of the first one's size."""
        if not self._denoised:
            return []
        size = self._denoised[0].size
        chunk = [sample for sample in self._denoised if sample.size == size]
        chunk = chunk[: images_per_chunk(size)]
        for sample in chunk:
            self._denoised.remove(sample)
        return chunk
