"""The main loop: admit, choose, denoise, decode."""

from contextlib import suppress
from typing import Final

import torch

from worker.batching import Batcher, Size
from worker.engine.capacity import Capacity
from worker.engine.conditioning import PromptCache
from worker.engine.decoder import Decoder
from worker.engine.denoiser import Denoiser, StepOutcome
from worker.engine.entry import Entry
from worker.engine.events import EngineEvent, Failed, Finished, Preview, Progress
from worker.engine.memory import DoesNotFit, is_fatal, is_out_of_memory
from worker.engine.pipeline import ResidentPipeline
from worker.engine.previews import Previewer
from worker.engine.request import SampleKey, SampleRequest
from worker.engine.sample import Sample
from worker.engine.tick import Tick, TickRecorder

# Prompts of so many waiting samples are encoded along with those of the admitted ones.
_ENCODE_AHEAD: Final = 16

# How long a step lasts that has nothing to do but wait for a LoRA, in seconds.
_PATIENCE: Final = 0.02


class Engine:
    """Draws images together that began at different times and differ in everything but the model.

    A sample waits, first for its LoRAs and then for room, is denoised in company of its size, waits
    for the decoder, and is gone with its last event, :class:`Finished` or :class:`Failed`. All
    calls must come from one thread.

    Args:
        pipeline: The model.
        max_rows: Most rows of any U-Net call, where nothing is measured.
        capacity: Decides the rows of a U-Net call instead. A sample with guidance takes two; one
            that alone takes more than it may is drawn alone, in several calls.

    Raises:
        ValueError: ``max_rows`` is below 1, or neither it nor ``capacity`` is given.
    """

    def __init__(
        self,
        pipeline: ResidentPipeline,
        *,
        max_rows: int | None = None,
        capacity: Capacity | None = None,
    ) -> None:
        self.capacity = capacity or Capacity(most=max_rows)
        self.last_tick = Tick()
        self._pipeline = pipeline
        self._prompts = PromptCache(pipeline)
        self._batcher: Batcher[Entry] = Batcher(self.capacity.cap)
        self._denoiser = Denoiser(pipeline)
        self._decoder = Decoder(pipeline, self.capacity)
        self._previewer = Previewer(pipeline)
        # Every sample, in whichever phase it is.
        self._entries: dict[SampleKey, Entry] = {}
        # Of these, those whose LoRAs are on their way.
        self._gathering: dict[SampleKey, Entry] = {}
        # Whether admission waits for somebody to leave, memory being too short for more.
        self._is_full = False
        # The sample that ran out of memory last, alone and at one row.
        self._short: Entry | None = None
        self._events: list[EngineEvent] = []
        self._tick = TickRecorder()

    @property
    def max_rows(self) -> int:
        """Most rows of a U-Net call at the model's native size."""
        return self.capacity.cap((self._pipeline.native_side, self._pipeline.native_side))

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to do."""
        return not self._entries

    @property
    def in_flight(self) -> int:
        """Samples admitted and neither finished nor failed."""
        return len(self._entries) - self.waiting

    @property
    def waiting(self) -> int:
        """Samples not admitted yet, or waiting again."""
        return self._batcher.waiting + len(self._gathering)

    @property
    def rows(self) -> int:
        """Rows that the samples in denoising take; those that wait for the decoder take none."""
        return self._batcher.rows

    @property
    def in_flight_bytes(self) -> int:
        """Bytes of the samples' own tensors. May be called from any thread."""
        samples = [entry.sample for entry in list(self._entries.values())]
        return sum(sample.bytes for sample in samples if sample is not None)

    @property
    def lora_bytes(self) -> int:
        """Bytes of the LoRAs at hand. May be called from any thread."""
        return self._pipeline.loras.bytes

    @property
    def has_room(self) -> bool:
        """Whether one more sample, of any size, would be of use now.

        Samples whose LoRAs are on their way keep no others out.
        """
        return not self._is_full and self._batcher.has_room

    def add(self, request: SampleRequest) -> None:
        """Queue a sample; it is admitted by a later :meth:`step`, first come, first served.

        Raises:
            ValueError: A sample of that key is here already, or the size or the number of steps
                is impossible.
        """
        if request.key in self._entries:
            raise ValueError(f"there is a sample with the key {request.key!r} already")
        if request.num_inference_steps < 1:
            raise ValueError(f"at least one step is needed, got {request.num_inference_steps}")
        self._pipeline.latent_shape(request.width, request.height)
        order = self._pipeline.loras.order(request.lora) if request.lora else None
        entry = self._entries[request.key] = Entry(request, order)
        if order is None:
            self._batcher.add(entry)
        else:
            self._gathering[request.key] = entry

    def remove(self, key: SampleKey) -> None:
        """Forget a sample, whatever its phase; nothing happens if it is unknown."""
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._leave(entry)

    def charge_previews(self, seconds: float) -> None:
        """Note how long it took to show previews: where that is much, fewer are drawn."""
        self._previewer.charge(seconds)

    @torch.inference_mode()
    def step(self) -> list[EngineEvent]:
        """One tick: at most one U-Net call and one decoder call. Returns what came of it.

        A sample that fails does so alone: its company goes on.

        Raises:
            torch.AcceleratorError: The device is lost to this process.
        """
        self._events, self._tick = [], TickRecorder()
        self.capacity.refresh()
        self._admit()
        size = self._batcher.choose(self.capacity.seconds)
        if size is not None:
            self._denoise(size)
        elif self._gathering and not len(self._decoder):
            self._pipeline.loras.wait(_PATIENCE)
        self._decode()
        self._denoiser.keep(self._batcher.sizes)
        self.last_tick = self._tick.finish()
        self._previewer.earn(self.last_tick.unet_seconds + self.last_tick.decode_seconds)
        return self._events

    # Admission

    def _admit(self) -> None:
        # Where steps are few and decoding is slow, denoised samples pile up: let them drain.
        if self._is_full or len(self._decoder) >= self.max_rows:
            return
        self._gather()
        self._measure()
        entries = self._batcher.admit()
        fresh = [entry for entry in entries if entry.sample is None]
        if not fresh:
            return
        with self._tick.phase("encode"):
            # A prompt that cannot be encoded spoils the batch. Below each sample that found
            # nothing in the cache encodes its own, so the culprit fails, and fails alone.
            ahead = self._batcher.heads(_ENCODE_AHEAD)
            with suppress(Exception):
                self._prompts.warm((entry.request, entry.loras) for entry in (*fresh, *ahead))
            self._start(fresh)
            self._pipeline.synchronize()

    def _gather(self) -> None:
        """Let those wait for room whose LoRAs have arrived."""
        for entry in list(self._gathering.values()):
            assert entry.order is not None
            try:
                loras = self._pipeline.loras.fill(entry.order)
            except Exception as error:
                if is_fatal(error):
                    raise
                if not is_out_of_memory(error):
                    self._fail(entry, error.with_traceback(None))
                    continue
                if self._lacks_memory(entry):
                    return
                continue
            if loras is not None:
                del self._gathering[entry.key]
                entry.loras = loras
                self._batcher.add(entry)

    def _lacks_memory(self, entry: Entry) -> bool:
        """There was no memory for an entry's LoRAs; whether to wait for others to leave.

        An entry that is alone is tried once more, and then fails.
        """
        self._tick.out_of_memory += 1
        self._pipeline.loras.clear()
        self.capacity.ran_out_elsewhere()
        self._is_full = self.in_flight > 0
        if not self._is_full and self._short is entry:
            names = ", ".join(repr(use.name) for use in entry.request.lora)
            self._fail(entry, DoesNotFit(f"The LoRA {names}", None, self.capacity.available))
        else:
            self._short = entry
        return self._is_full

    def _measure(self) -> None:
        """Measure sizes that are new, and turn away those of which not even a row fits."""
        for size in {entry.size for entry in self._entries.values() if entry.sample is None}:
            refusal = self._learn(size) or self.capacity.refuse(size)
            if refusal is not None:
                for entry in [e for e in self._entries.values() if e.size == size]:
                    if entry.sample is None:
                        self._fail(entry, refusal)

    def _learn(self, size: Size) -> Exception | None:
        """Measure ``size`` if it is new; why it cannot be drawn, if the model itself says so."""
        try:
            return self.capacity.learn(size)
        except Exception as error:
            if is_fatal(error):
                raise
            return error.with_traceback(None)

    def _start(self, entries: list[Entry]) -> None:
        for i, entry in enumerate(entries):
            failure = self._begin(entry)
            if failure is None:
                continue
            if not is_out_of_memory(failure):
                self._fail(entry, failure)
                continue
            self._tick.out_of_memory += 1
            self.capacity.ran_out_elsewhere()
            for later in reversed(entries[i + 1 :]):
                self._batcher.put_back(later.key)
            self._starve(entry)
            return

    def _begin(self, entry: Entry) -> Exception | None:
        """Make an entry's sample; why that went wrong, if it did."""
        try:
            positive, negative = self._prompts.conditioning(entry.request, entry.loras)
            entry.sample = Sample(entry.request, self._pipeline, positive, negative, entry.loras)
        except Exception as error:
            if is_fatal(error):
                raise
            return error.with_traceback(None)
        return None

    # Denoising

    def _denoise(self, size: Size) -> None:
        # What fitted when these were admitted may do so no longer.
        cap = self.capacity.cap(size)
        self._tick.put_back += len(self._batcher.shrink(size, cap))
        samples = [e.sample for e in self._batcher.members(size) if e.sample is not None]
        if not samples:
            return
        outcome = self._denoiser.step(size, samples, cap, self._tick)
        for sample, error in outcome.failed:
            self._fail(self._entries[sample.key], error)
        for sample in outcome.advanced:
            self._note_step(sample)
        self._preview(outcome.advanced)
        if outcome.tried:
            self._make_room(size, outcome)
        else:
            self.capacity.went_well(size)
            self.capacity.note_step(size, self._tick.rows, self._tick.seconds("unet"))

    def _make_room(self, size: Size, outcome: StepOutcome) -> None:
        """Memory ran out in a step: try less from now on, the youngest first having to wait."""
        self._tick.out_of_memory += 1
        self._pipeline.loras.clear()
        most = self.capacity.ran_out(size, outcome.tried)
        gone = self._batcher.shrink(size, most)
        self._tick.put_back += len(gone)
        if outcome.tried == 1 and not gone:
            # There is no less than one row.
            for sample in reversed(outcome.starved):
                self._starve(self._entries[sample.key])

    def _starve(self, entry: Entry) -> None:
        """There was no memory for a sample: it waits for others to leave.

        One that is alone is tried once more, and then fails.
        """
        is_alone = self.in_flight == 1
        if not is_alone or self._short is not entry:
            self._is_full = not is_alone
            self._short = entry if is_alone else self._short
            self._batcher.put_back(entry.key)
            self._tick.put_back += 1
            return
        self._fail(entry, self.capacity.refusal(entry.size))

    def _note_step(self, sample: Sample) -> None:
        if sample.completed_step:
            steps = sample.request.num_inference_steps
            self._events.append(Progress(sample.key, sample.steps_done, steps))
        if sample.is_denoised:
            self._batcher.remove(sample.key)
            self._decoder.add(sample)

    def _preview(self, samples: list[Sample]) -> None:
        wanted = [sample for sample in samples if sample.wanted_preview]
        if wanted:
            with self._tick.phase("preview"):
                drawn = self._previewer.draw(wanted)
            failed = self._previewer.failed
            self._tick.previews_failed += failed
            self._tick.previews_dropped += len(wanted) - len(drawn) - failed
            for sample, image in drawn:
                self._events.append(Preview(sample.key, sample.steps_done, image))

    # Decoding

    def _decode(self) -> None:
        with self._tick.phase("decode"):
            tick = self._decoder.tick()
        self._tick.decoded, self._tick.upcasts = tick.images, tick.upcasts
        self._tick.out_of_memory += tick.ran_out
        for sample, drawn in tick.drawn:
            del self._entries[sample.key]
            self._is_full = False
            if isinstance(drawn, Exception):
                self._events.append(Failed(sample.key, drawn))
            else:
                self._events.append(Finished(sample.key, drawn))

    # Leaving

    def _fail(self, entry: Entry, error: Exception) -> None:
        del self._entries[entry.key]
        self._leave(entry)
        self._events.append(Failed(entry.key, error))

    def _leave(self, entry: Entry) -> None:
        self._is_full = False
        self._short = None
        self._gathering.pop(entry.key, None)
        if entry.sample is not None and entry.sample in self._decoder:
            self._decoder.remove(entry.sample)
        else:
            self._batcher.remove(entry.key)
