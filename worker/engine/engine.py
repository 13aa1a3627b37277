"""The main loop: admit, choose, denoise, advance, decode."""

from contextlib import suppress

import torch

from worker.engine.conditioning import PromptCache
from worker.engine.decode import DecodeQueue, decode
from worker.engine.denoise import Batch
from worker.engine.events import EngineEvent, Failed, Finished, Progress
from worker.engine.groups import ShapeGroup, ShapeGroups
from worker.engine.pipeline import ResidentPipeline
from worker.engine.request import SampleKey, SampleRequest
from worker.engine.sample import NonFiniteError, Sample
from worker.engine.tick import Tick, TickRecorder


class Engine:
    """Draws images together that began at different times and differ in everything but the model.

    A sample waits, is denoised in company of its size, waits for the decoder, and is gone with
    its last event, :class:`Finished` or :class:`Failed`. All calls must come from one thread.

    Args:
        pipeline: The model.
        max_rows: Most rows of the U-Net batch; a sample with guidance takes two. One that alone
            takes more is still drawn, alone.

    Raises:
        ValueError: ``max_rows`` is below 1.
    """

    def __init__(self, pipeline: ResidentPipeline, *, max_rows: int) -> None:
        if max_rows < 1:
            raise ValueError(f"max_rows must be at least 1, got {max_rows}")
        self.max_rows = max_rows
        self.last_tick = Tick()
        self._pipeline = pipeline
        self._prompts = PromptCache(pipeline)
        self._waiting: dict[SampleKey, SampleRequest] = {}
        self._groups = ShapeGroups()
        self._decoding = DecodeQueue()
        # Every admitted sample, in whichever of the two phases it is.
        self._samples: dict[SampleKey, Sample] = {}
        self._events: list[EngineEvent] = []
        self._tick = TickRecorder()

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to do."""
        return not self._waiting and not self._samples

    @property
    def in_flight(self) -> int:
        """Samples admitted and neither finished nor failed."""
        return len(self._samples)

    @property
    def waiting(self) -> int:
        """Samples not admitted yet."""
        return len(self._waiting)

    @property
    def rows(self) -> int:
        """Rows that the samples in denoising take; those that wait for the decoder take none."""
        return self._groups.rows

    def add(self, request: SampleRequest) -> None:
        """Queue a sample; it is admitted by a later :meth:`step`, first come, first served.

        Raises:
            ValueError: A sample of that key is here already, or the size or the number of steps
                is impossible.
        """
        if request.key in self._waiting or request.key in self._samples:
            raise ValueError(f"there is a sample with the key {request.key!r} already")
        if request.num_inference_steps < 1:
            raise ValueError(f"at least one step is needed, got {request.num_inference_steps}")
        self._pipeline.latent_shape(request.width, request.height)
        self._waiting[request.key] = request

    def remove(self, key: SampleKey) -> None:
        """Forget a sample, whatever its phase; nothing happens if it is unknown."""
        self._waiting.pop(key, None)
        sample = self._samples.get(key)
        if sample is not None:
            self._forget(sample)

    @torch.inference_mode()
    def step(self) -> list[EngineEvent]:
        """One tick: at most one U-Net call and one decoder call. Returns what came of it.

        A sample that fails does so alone: its company goes on.
        """
        self._events, self._tick = [], TickRecorder()
        self._admit()
        group = self._groups.choose()
        if group is not None:
            self._denoise(group)
        self._decode()
        self.last_tick = self._tick.finish()
        return self._events

    def _admit(self) -> None:
        requests = self._admissible()
        if not requests:
            return
        with self._tick.phase("encode"):
            # A prompt that cannot be encoded spoils the batch. Below each sample that found
            # nothing in the cache encodes its own, so the culprit fails, and fails alone.
            with suppress(Exception):
                self._prompts.warm(requests)
            for request in requests:
                self._start(request)
            self._pipeline.synchronize()

    def _admissible(self) -> list[SampleRequest]:
        """The longest run from the head of the queue that the batch has room for."""
        # Where steps are few and decoding is slow, denoised samples pile up: let them drain.
        if len(self._decoding) >= self.max_rows:
            return []
        rows, requests = self.rows, []
        for request in self._waiting.values():
            if rows and rows + request.rows > self.max_rows:
                break
            rows += request.rows
            requests.append(request)
        return requests

    def _start(self, request: SampleRequest) -> None:
        del self._waiting[request.key]
        try:
            positive, negative = self._prompts.conditioning(request)
            sample = Sample(request, self._pipeline, positive, negative)
        except Exception as error:
            self._events.append(Failed(request.key, error))
            return
        self._samples[sample.key] = sample
        self._groups.add(sample)

    def _denoise(self, group: ShapeGroup) -> None:
        with self._tick.phase("unet"):
            noise_pred = self._predict_noise(group)
            self._pipeline.synchronize()
        if noise_pred is not None:
            with self._tick.phase("scheduler"):
                self._advance(group.batch(), noise_pred)

    def _predict_noise(self, group: ShapeGroup) -> torch.Tensor | None:
        """The U-Net call; ``None`` if it failed, or no sample was left to call it for."""
        model_inputs = []
        for sample in group.batch().samples:
            try:
                model_inputs.append(sample.model_input())
            except Exception as error:
                self._fail(sample, error)
        if not model_inputs:
            return None
        # Made anew if a sample has just failed; the order of the others is the same.
        batch = group.batch()
        self._tick.rows, self._tick.samples = batch.rows, len(batch.samples)
        self._tick.shape = group.shape
        try:
            return batch.noise_pred(self._pipeline, model_inputs)
        except Exception as error:
            for sample in batch.samples:
                self._fail(sample, error)
            return None

    def _advance(self, batch: Batch, noise_pred: torch.Tensor) -> None:
        advanced = []
        noise_pred = batch.guide(noise_pred)
        for i, sample in enumerate(batch.samples):
            try:
                sample.advance(noise_pred[i : i + 1])
                advanced.append(sample)
            except Exception as error:
                self._fail(sample, error)
        for sample, is_finite in zip(advanced, _are_finite(advanced), strict=True):
            if is_finite:
                self._note_step(sample)
            else:
                self._fail(sample, NonFiniteError("the latents came to hold NaN or infinity"))

    def _note_step(self, sample: Sample) -> None:
        if sample.completed_step:
            steps = sample.request.num_inference_steps
            self._events.append(Progress(sample.key, sample.steps_done, steps))
        if sample.is_denoised:
            self._groups.remove(sample)
            self._decoding.add(sample)

    def _decode(self) -> None:
        chunk = self._decoding.next_chunk()
        if not chunk:
            return
        with self._tick.phase("decode"):
            images = decode(self._pipeline, chunk)
        self._tick.decoded = len(chunk)
        for sample, image in zip(chunk, images, strict=True):
            del self._samples[sample.key]
            if isinstance(image, Exception):
                self._events.append(Failed(sample.key, image))
            else:
                self._events.append(Finished(sample.key, image))

    def _fail(self, sample: Sample, error: Exception) -> None:
        self._forget(sample)
        self._events.append(Failed(sample.key, error))

    def _forget(self, sample: Sample) -> None:
        del self._samples[sample.key]
        if sample in self._decoding:
            self._decoding.remove(sample)
        else:
            self._groups.remove(sample)


def _are_finite(samples: list[Sample]) -> list[bool]:
    """Which samples' latents hold neither NaN nor infinity; one look at the device for all."""
    if not samples:
        return []
    latents = torch.cat([sample.latents for sample in samples])
    flags: list[bool] = torch.isfinite(latents).flatten(1).all(1).tolist()
    return flags
