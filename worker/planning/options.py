"""The options of ``koala plan`` as text, and the plan that they ask for."""

from dataclasses import dataclass
from typing import Final

import torch
from pydantic import ByteSize, TypeAdapter, ValidationError

from koala.catalogue import ModelCard, resolve
from koala.errors import ModelNotFound
from worker.batching import Size
from worker.planning.architecture import Architecture, UnknownArchitecture, architecture_of
from worker.planning.attention import Attention
from worker.planning.cards import CARDS
from worker.planning.plan import Plan
from worker.simulation.published import PROFILES, Profile

# The promise of KOALA is that this is enough.
_DEFAULT_VRAM: Final = 8 * 2**30
_DTYPES: Final = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
# What a profile's name calls a U-Net.
_PROFILE_UNETS: Final = {"koala-700m": "700m", "koala-1b": "1b"}
_BYTES: Final = TypeAdapter(ByteSize)


class OptionError(ValueError):
    """An option that cannot be used; the message names it, in one line."""


@dataclass(frozen=True)
class Question:
    """What is to be planned.

    Args:
        model: The model.
        plan: What it takes.
        dtype: Name of its number format.
        attention: Which kernel computes the attention.
        vram: Bytes that the card has.
        card: What to call the card.
        profiles: Cards with published latencies of this model: the card itself where it is one of
            them, else all.
    """

    model: ModelCard
    plan: Plan
    dtype: str
    attention: Attention
    vram: int
    card: str
    profiles: tuple[Profile, ...]


@dataclass(frozen=True)
class Options:
    """The options as they were typed; ``None`` where one was left out."""

    model: str
    vram: str | None = None
    card: str | None = None
    size: str | None = None
    dtype: str = "float16"
    attention: str = Attention.FUSED

    def question(self) -> Question:
        """What they ask.

        Raises:
            OptionError: One of them cannot be used.
        """
        try:
            card = resolve(self.model)
            architecture = architecture_of(card)
        except ModelNotFound as error:
            raise OptionError(error.message) from None
        except UnknownArchitecture as error:
            raise OptionError(f"MODEL: {error}.") from None
        if self.dtype not in _DTYPES:
            raise OptionError(f"--dtype: one of {', '.join(_DTYPES)}, got {self.dtype!r}.")
        if self.attention not in set(Attention):
            known = ", ".join(Attention)
            raise OptionError(f"--attention: one of {known}, got {self.attention!r}.")
        if self.card is not None and self.card not in CARDS:
            raise OptionError(f"--card: there is no {self.card!r}; there are {', '.join(CARDS)}.")
        attention, size = Attention(self.attention), self._size(card)
        vram = self._vram()
        try:
            plan = Plan(architecture, size, _DTYPES[self.dtype], attention)
        except UnknownArchitecture as error:
            raise OptionError(f"MODEL: {error}.") from None
        name = "a card" if self.card is None else CARDS[self.card].name
        profiles = _profiles(architecture, card, self.card)
        return Question(card, plan, self.dtype, attention, vram, name, profiles)

    def _size(self, card: ModelCard) -> Size:
        if self.size is None:
            return card.native_side, card.native_side
        width, _, height = self.size.partition("x")
        if not (width.isdecimal() and height.isdecimal()):
            raise OptionError(f"--size: WIDTHxHEIGHT in pixels, got {self.size!r}.")
        wrong = card.size_error(int(width), int(height))
        if wrong is not None:
            raise OptionError(f"--size: {self.size}: {wrong}.")
        return int(width), int(height)

    def _vram(self) -> int:
        if self.vram is None:
            return _DEFAULT_VRAM if self.card is None else CARDS[self.card].vram
        try:
            vram = int(_BYTES.validate_python(self.vram))
        except ValidationError:
            raise OptionError(f"--vram: bytes, such as 8GiB, got {self.vram!r}.") from None
        if vram < 1:
            raise OptionError(f"--vram: must be above 0, got {self.vram!r}.")
        return vram


def _profiles(
    architecture: Architecture, model: ModelCard, card: str | None
) -> tuple[Profile, ...]:
    """Published latencies of the U-Net, from the series nearest in size."""
    unet = _PROFILE_UNETS.get(architecture.unet_name or "")
    series = "turbo" if model.native_side <= 512 else "lightning"
    return tuple(
        profile
        for profile in PROFILES.values()
        if profile.unet == unet
        and f"koala-{series}-" in profile.name
        and card in (None, profile.card)
    )
