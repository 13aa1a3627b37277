"""The LoRAs that were used last, ready on the device, and those that are on their way."""

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final

import torch

from koala.lora import LoraError, LoraFolder, LoraUse, UnknownLora
from worker.engine.lora.adapter import Adapter, FileChanged, read_adapter
from worker.engine.lora.blueprint import Blueprint, draw_up
from worker.engine.lora.layers import layers_of
from worker.engine.lora.names import Names, Part
from worker.engine.lora.rows import AppliedLora

# Of a U-Net of KOALA's size a LoRA takes 10 to 200 MiB.
_MOST_BYTES: Final = 512 * 2**20
# Blueprints and refusals of the files looked at last.
_REMEMBERED: Final = 64
# How often a sample's file may change while it is read.
_TRIES: Final = 3


class LoraOrder:
    """The LoRAs of one sample on their way to the device.

    Args:
        uses: What the sample asks for.
        look_ups: What their files' headers say, by name.
    """

    def __init__(self, uses: Sequence[LoraUse], look_ups: dict[str, Future[Blueprint]]) -> None:
        self.uses = uses
        self.look_ups = look_ups
        # Held from here on, whatever the shelf lets go of.
        self.adapters: dict[str, Adapter] = {}
        self.tries = 0


class Shelf:
    """Reads LoRAs when they are first asked for and keeps the last used ones.

    The disk is only touched by two threads: one looks at files and their headers, so that what
    does not fit is refused before a number of it is read; the other reads, one file at a time.
    All calls, unless they say otherwise, must come from the engine's thread, which alone moves
    what was read to the device.

    Args:
        folder: Where they are.
        models: The U-Net and the text encoders.
        device: Where they are kept, and
        dtype: in which number format.
        most_bytes: What is kept at the most; the last one used is kept whatever it takes.
    """

    def __init__(
        self,
        folder: LoraFolder,
        models: Mapping[Part, Any],
        device: torch.device,
        dtype: torch.dtype,
        most_bytes: int = _MOST_BYTES,
    ) -> None:
        self._folder = folder
        self._dtype = dtype
        self._device = device
        self._most_bytes = most_bytes
        self._layers = {part: layers_of(model) for part, model in models.items()}
        self._names = Names(self._layers, models["unet"].config)
        self._looking = ThreadPoolExecutor(1, thread_name_prefix="lora-header")
        self._readers = ThreadPoolExecutor(1, thread_name_prefix="lora-file")
        self._news = threading.Event()
        # By the stamps of their files. The first one is the looking thread's own.
        self._blueprints: OrderedDict[str, Blueprint] = OrderedDict()
        self._adapters: OrderedDict[str, Adapter] = OrderedDict()
        self._refusals: OrderedDict[str, BaseException] = OrderedDict()
        self._reading: tuple[Blueprint, Future[Adapter]] | None = None

    def __len__(self) -> int:
        return len(self._adapters)

    @property
    def bytes(self) -> int:
        """Bytes of what is kept. May be called from any thread."""
        return sum(adapter.bytes for adapter in list(self._adapters.values()))

    def order(self, uses: Sequence[LoraUse]) -> LoraOrder:
        """Begin to fetch what a sample asks for."""
        names = dict.fromkeys(use.name for use in uses)
        return LoraOrder(uses, {name: self._look_up(name) for name in names})

    def fill(self, order: LoraOrder) -> tuple[AppliedLora, ...] | None:
        """What was ordered, once all of it is on the device; ``None``: it is still on its way.

        Never waits for the disk.

        Raises:
            LoraError: A LoRA cannot be used.
            RuntimeError: Memory for one ran out, or :exc:`MemoryError`; it can be tried again.
        """
        for name, look_up in list(order.look_ups.items()):
            if name in order.adapters or not look_up.done():
                continue
            try:
                adapter = self._at_hand(look_up.result())
            except FileChanged:
                order.tries += 1
                if order.tries > _TRIES:
                    raise LoraError.unusable(name, "its file is being written") from None
                order.look_ups[name] = self._look_up(name)
                continue
            if adapter is not None:
                order.adapters[name] = adapter
        if len(order.adapters) < len(order.look_ups):
            return None
        return tuple(AppliedLora(order.adapters[use.name], use.weight) for use in order.uses)

    def wait(self, seconds: float) -> None:
        """Return as soon as there is news of what is on its way, or after ``seconds``."""
        self._news.wait(seconds)
        self._news.clear()

    def clear(self) -> None:
        """Let go of all that no sample uses."""
        self._adapters.clear()

    # In the engine's thread

    def _at_hand(self, wanted: Blueprint) -> Adapter | None:
        """The adapter, if it is on the device; else it is read as soon as no other one is."""
        self._take_in()
        stamp = wanted.file.stamp
        if stamp in self._adapters:
            self._adapters.move_to_end(stamp)
            return self._adapters[stamp]
        refusal = self._refusals.get(stamp)
        if refusal is not None:
            if not isinstance(refusal, LoraError):
                # It was for the moment.
                del self._refusals[stamp]
            raise refusal.with_traceback(None)
        if self._reading is None:
            reading = self._readers.submit(read_adapter, wanted, self._dtype)
            reading.add_done_callback(lambda _: self._news.set())
            self._reading = wanted, reading
        return None

    def _take_in(self) -> None:
        """Move what was read to the device."""
        if self._reading is None or not self._reading[1].done():
            return
        blueprint, reading = self._reading
        stamp = blueprint.file.stamp
        error = reading.exception()
        if error is not None:
            self._refusals[stamp] = error
            _trim(self._refusals)
        else:
            # What was read stays where it is if the device has no memory for it.
            adapter = reading.result().to(self._device)
            for other in [s for s, kept in self._adapters.items() if kept.name == adapter.name]:
                del self._adapters[other]
            self._adapters[stamp] = adapter
            while len(self._adapters) > 1 and self.bytes > self._most_bytes:
                self._adapters.popitem(last=False)
        self._reading = None

    def _look_up(self, name: str) -> Future[Blueprint]:
        look_up = self._looking.submit(self._blueprint, name)
        look_up.add_done_callback(lambda _: self._news.set())
        return look_up

    # In the looking thread

    def _blueprint(self, name: str) -> Blueprint:
        try:
            file = self._folder.find(name)
        except UnknownLora as error:
            raise LoraError.unusable(name, error) from None
        blueprint = self._blueprints.get(file.stamp)
        if blueprint is None:
            blueprint = self._blueprints[file.stamp] = draw_up(file, self._layers, self._names)
            _trim(self._blueprints)
        return blueprint


def _trim(remembered: OrderedDict[str, Any]) -> None:
    while len(remembered) > _REMEMBERED:
        remembered.popitem(last=False)
