"""The text encoders: on the device for good, or only while they encode."""

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any, Final, Protocol, TypeAlias

import torch
from torch.func import functional_call

from worker.engine.device import Upload, Uploads
from worker.engine.lora import Part, RowLoras

Call: TypeAlias = Callable[[torch.Tensor], Any]

_PARTS: Final[tuple[Part, ...]] = ("text_encoder", "text_encoder_2")

_ARGUMENTS: Final[dict[str, Any]] = {"output_hidden_states": True}


class TextEncoder(Protocol):
    """One CLIP text encoder."""

    @property
    def module(self) -> torch.nn.Module:
        """transformers' model, whose layers LoRAs add to."""

    @property
    def bytes(self) -> int:
        """Bytes that its weights take on the device between two calls."""

    def fetch(self) -> Call:
        """See to it that the weights come; what this returns is called with the tokens (n, t)."""

    def empty(self) -> None:
        """Let go of the weights for good."""


class ResidentEncoder:
    """Stays on the device.

    Args:
        module: transformers' model, on its device.
    """

    def __init__(self, module: torch.nn.Module) -> None:
        self.module = module.eval()

    @property
    def bytes(self) -> int:
        """As :attr:`TextEncoder.bytes`."""
        return sum(p.numel() * p.element_size() for p in self.module.parameters())

    def fetch(self) -> Call:
        """As :meth:`TextEncoder.fetch`."""
        return lambda tokens: self.module(tokens, **_ARGUMENTS)

    def empty(self) -> None:
        """As :meth:`TextEncoder.empty`."""
        self.module.to("meta")


class OffloadedEncoder:
    """Has its weights in the CPU's memory, and a copy on the device for the time of one call.

    Nothing is copied back: weights do not change.

    Args:
        module: transformers' model; it is emptied.
        uploads: Brings the weights to the device.
    """

    bytes = 0

    def __init__(self, module: torch.nn.Module, uploads: Uploads) -> None:
        named = chain(module.named_parameters(), module.named_buffers())
        self._kept = {name: uploads.keep(tensor.detach()) for name, tensor in named}
        self._uploads = uploads
        # Without weights of its own, the module cannot compute with any but those it is given.
        self.module = module.eval().to("meta")

    def fetch(self) -> Call:
        """As :meth:`TextEncoder.fetch`."""
        upload: Upload = self._uploads.begin(self._kept)

        def call(tokens: torch.Tensor) -> Any:
            return functional_call(self.module, dict(upload.wait()), (tokens,), _ARGUMENTS)

        return call

    def empty(self) -> None:
        """As :meth:`TextEncoder.empty`."""
        self._kept.clear()


class TextEncoders:
    """SDXL's two text encoders with their tokenizers.

    Args:
        encoders: Tokenizer and encoder of each.
        device: Where they encode.
    """

    def __init__(self, encoders: Sequence[tuple[Any, TextEncoder]], device: torch.device) -> None:
        self._encoders = encoders
        self._device = device

    @property
    def bytes(self) -> int:
        """Bytes that the weights take on the device between two calls."""
        return sum(encoder.bytes for _, encoder in self._encoders)

    def empty(self) -> None:
        """Let go of the weights for good; tokens can still be counted."""
        for _, encoder in self._encoders:
            encoder.empty()

    def count_tokens(self, prompt: str) -> int:
        """Tokens of ``prompt``, begin and end marks left out."""
        tokenizer, _ = self._encoders[0]
        return len(tokenizer(prompt, add_special_tokens=False, verbose=False).input_ids)

    def encode(self, prompts: list[str], loras: RowLoras) -> tuple[torch.Tensor, torch.Tensor]:
        """Encode prompts in one batch, each with its LoRAs and cut to the tokenizer's window.

        Returns:
            Both encoders' last but one hidden states side by side, (n, tokens, width), and the
            second's pooled output, (n, projection_dim).
        """
        # All begin to come before the first one encodes: the second's way is the longest.
        calls = [encoder.fetch() for _, encoder in self._encoders]
        hidden_states = []
        for part, (tokenizer, encoder) in zip(_PARTS, self._encoders, strict=True):
            tokens = tokenizer(
                prompts,
                padding="max_length",
                max_length=tokenizer.model_max_length,
                truncation=True,
                return_tensors="pt",
            )
            # Popped, so that an encoder leaves the device before the next one encodes.
            with loras.applied(part, encoder.module):
                output = calls.pop(0)(tokens.input_ids.to(self._device))
            hidden_states.append(output.hidden_states[-2])
        return torch.cat(hidden_states, dim=-1), output.text_embeds
