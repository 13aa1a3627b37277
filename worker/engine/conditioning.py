"""Prompt embeddings, remembered by prompt: negative prompts and popular prompts repeat."""

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import torch

from worker.engine.pipeline import ResidentPipeline
from worker.engine.request import SampleRequest

# An SDXL entry takes 310 KiB in fp16, so a full cache takes 40 MiB.
_ENTRIES: Final = 128


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
        self._cache: OrderedDict[str, Conditioning] = OrderedDict()
        self._zeros: Conditioning | None = None

    def __len__(self) -> int:
        return len(self._cache)

    def warm(self, requests: Iterable[SampleRequest]) -> None:
        """Encode, in one batch, what the requests need and the cache lacks."""
        wanted = dict.fromkeys(text for request in requests for text in self._texts(request))
        missing = [text for text in wanted if text not in self._cache]
        if missing:
            prompt_embeds, pooled_prompt_embeds = self._pipeline.encode_prompts(missing)
            # Clones, or each entry would keep its whole batch alive.
            for i, text in enumerate(missing):
                self._remember(
                    text,
                    Conditioning(
                        prompt_embeds[i : i + 1].clone(), pooled_prompt_embeds[i : i + 1].clone()
                    ),
                )

    def conditioning(self, request: SampleRequest) -> tuple[Conditioning, Conditioning | None]:
        """The positive conditioning and, with guidance, the negative one."""
        positive = self._look_up(request.prompt)
        if not request.is_guided:
            return positive, None
        text = self._negative_text(request)
        return positive, self._zeros_like(positive) if text is None else self._look_up(text)

    def _texts(self, request: SampleRequest) -> list[str]:
        negative = self._negative_text(request) if request.is_guided else None
        return [request.prompt] if negative is None else [request.prompt, negative]

    def _negative_text(self, request: SampleRequest) -> str | None:
        """The text of the unconditional row; ``None`` where it is zeros instead of a text."""
        if request.negative_prompt is None and not self._pipeline.force_zeros_for_empty_prompt:
            return ""
        return request.negative_prompt

    def _look_up(self, text: str) -> Conditioning:
        found = self._cache.get(text)
        if found is None:
            found = Conditioning(*self._pipeline.encode_prompts([text]))
        self._remember(text, found)
        return found

    def _remember(self, text: str, conditioning: Conditioning) -> None:
        self._cache[text] = conditioning
        self._cache.move_to_end(text)
        while len(self._cache) > self._entries:
            self._cache.popitem(last=False)

    def _zeros_like(self, positive: Conditioning) -> Conditioning:
        if self._zeros is None:
            self._zeros = Conditioning(
                torch.zeros_like(positive.prompt_embeds),
                torch.zeros_like(positive.pooled_prompt_embeds),
            )
        return self._zeros
