"""Prompt embeddings, remembered by prompt: negative prompts and popular prompts repeat."""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import torch

from worker.engine.lora import AppliedLora
from worker.engine.pipeline import ResidentPipeline
from worker.engine.request import SampleRequest

# An SDXL entry takes 310 KiB in fp16, so a full cache takes 40 MiB.
_ENTRIES: Final = 128

# A text, and the LoRAs that change how it is encoded: their stamps and weights.
_Key: TypeAlias = tuple[str, tuple[tuple[str, float], ...]]


@dataclass(frozen=True, slots=True)
class Conditioning:
    """What a prompt tells the U-Net.

    Args:
        prompt_embeds: (1, tokens, cross_attention_dim).
        pooled_prompt_embeds: (1, projection_dim of the second text encoder).
    """

    prompt_embeds: torch.Tensor
    pooled_prompt_embeds: torch.Tensor


class PromptCache:
    """Encodes prompts in batches and remembers the most recent ones.

    Args:
        pipeline: Encodes.
        entries: Prompts to remember.
    """

    def __init__(self, pipeline: ResidentPipeline, entries: int = _ENTRIES) -> None:
        self._pipeline = pipeline
        self._entries = entries
        self._cache: OrderedDict[_Key, Conditioning] = OrderedDict()
        self._zeros: Conditioning | None = None

    def __len__(self) -> int:
        return len(self._cache)

    def warm(self, wanted: Iterable[tuple[SampleRequest, Sequence[AppliedLora]]]) -> None:
        """Encode, in one batch, what the requests with their LoRAs need and the cache lacks."""
        missing: dict[_Key, tuple[AppliedLora, ...]] = {}
        for request, given in wanted:
            loras = _of_prompts(given)
            for text in self._texts(request):
                if (key := _key(text, loras)) not in self._cache:
                    missing[key] = loras
        if missing:
            prompt_embeds, pooled_prompt_embeds = self._pipeline.encode_prompts(
                [text for text, _ in missing], list(missing.values())
            )
            # Clones, or each entry would keep its whole batch alive.
            for i, key in enumerate(missing):
                self._remember(
                    key,
                    Conditioning(
                        prompt_embeds[i : i + 1].clone(), pooled_prompt_embeds[i : i + 1].clone()
                    ),
                )

    def conditioning(
        self, request: SampleRequest, given: Sequence[AppliedLora] = ()
    ) -> tuple[Conditioning, Conditioning | None]:
        """The positive conditioning and, with guidance, the negative one.

        Args:
            request: Whose.
            given: The request's LoRAs.
        """
        loras = _of_prompts(given)
        positive = self._look_up(request.prompt, loras)
        if not request.is_guided:
            return positive, None
        text = self._negative_text(request)
        if text is None:
            return positive, self._zeros_like(positive)
        return positive, self._look_up(text, loras)

    def _texts(self, request: SampleRequest) -> list[str]:
        negative = self._negative_text(request) if request.is_guided else None
        return [request.prompt] if negative is None else [request.prompt, negative]

    def _negative_text(self, request: SampleRequest) -> str | None:
        """The text of the unconditional row; ``None`` where it is zeros instead of a text."""
        if request.negative_prompt is None and not self._pipeline.force_zeros_for_empty_prompt:
            return ""
        return request.negative_prompt

    def _look_up(self, text: str, loras: tuple[AppliedLora, ...]) -> Conditioning:
        key = _key(text, loras)
        found = self._cache.get(key)
        if found is None:
            found = Conditioning(*self._pipeline.encode_prompts([text], [loras]))
        self._remember(key, found)
        return found

    def _remember(self, key: _Key, conditioning: Conditioning) -> None:
        self._cache[key] = conditioning
        self._cache.move_to_end(key)
        while len(self._cache) > self._entries:
            self._cache.popitem(last=False)

    def _zeros_like(self, positive: Conditioning) -> Conditioning:
        if self._zeros is None:
            self._zeros = Conditioning(
                torch.zeros_like(positive.prompt_embeds),
                torch.zeros_like(positive.pooled_prompt_embeds),
            )
        return self._zeros


def _of_prompts(loras: Sequence[AppliedLora]) -> tuple[AppliedLora, ...]:
    """Those that change how prompts are encoded."""
    return tuple(lora for lora in loras if lora.adapter.changes_prompts)


def _key(text: str, loras: tuple[AppliedLora, ...]) -> _Key:
    return text, tuple((lora.adapter.stamp, lora.weight) for lora in loras)
