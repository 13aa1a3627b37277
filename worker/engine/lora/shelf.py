"""The LoRAs that were used last, ready on the device."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch

from koala.lora import LoraFolder, LoraUse, UnknownLora
from worker.engine.lora.adapter import Adapter, LoraError, read_adapter, stamp_of
from worker.engine.lora.layers import layers_of
from worker.engine.lora.names import Names, Part
from worker.engine.lora.rows import AppliedLora

# Of a U-Net of KOALA's size a LoRA takes 10 to 200 MiB.
_MOST_BYTES: Final = 512 * 2**20


class Shelf:
    """Reads LoRAs when they are first asked for and keeps the last used ones.

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
        self._adapters: OrderedDict[str, Adapter] = OrderedDict()

    def __len__(self) -> int:
        return len(self._adapters)

    @property
    def bytes(self) -> int:
        """Bytes of what is kept. May be called from any thread."""
        return sum(adapter.bytes for adapter in list(self._adapters.values()))

    def take(self, uses: Sequence[LoraUse]) -> tuple[AppliedLora, ...]:
        """The LoRAs of a request, read from their files where they are not here or have changed.

        Raises:
            LoraError: One of them cannot be used.
        """
        return tuple(AppliedLora(self._adapter(use.name), use.weight) for use in uses)

    def clear(self) -> None:
        """Let go of all that no sample uses."""
        self._adapters.clear()

    def _adapter(self, name: str) -> Adapter:
        try:
            path = self._folder.find(name)
        except UnknownLora as error:
            raise LoraError(f"The worker cannot draw this: {error}.") from None
        adapter = self._adapters.pop(name, None)
        if adapter is None or adapter.stamp != stamp_of(path):
            adapter = read_adapter(path, self._layers, self._names, self._device, self._dtype)
        self._adapters[name] = adapter
        while len(self._adapters) > 1 and self.bytes > self._most_bytes:
            self._adapters.popitem(last=False)
        return adapter
