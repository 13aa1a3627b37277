"""Captions of scenes: a small English grammar with paraphrases."""

from __future__ import annotations

from typing import Final

import numpy as np

from distill.glyphs import NAMES
from distill.scenes import COLOURS, PAIRS, Scene

DEFAULT_BACKGROUND: Final = "white"

# (weight, template) pairs; weights need not sum to one.
_SUBJECTS: Final = (
    (0.55, "{a}"),
    (0.13, "{bare}"),
    (0.08, "an emoji of {a}"),
    (0.08, "a photo of {a}"),
    (0.05, "a picture of {a}"),
    (0.04, "a drawing of {a}"),
    (0.04, "an image of {a}"),
    (0.03, "the {bare}"),
)
_BACKGROUNDS: Final = (
    (0.62, "{subject} on a {colour} background"),
    (0.14, "{subject} on {colour}"),
    (0.10, "{subject}, {colour} background"),
    (0.07, "a {colour} background with {subject}"),
    (0.04, "{subject} in front of a {colour} background"),
    (0.03, "{subject} with a {colour} background"),
)
_CORNERS: Final = (
    (0.7, "{subject} in the {corner} corner"),
    (0.2, "{subject} in the {corner}"),
    (0.1, "{subject} at the {corner}"),
)
# {first} is the left or upper glyph; {second} the right or lower one.  The relation's word and
# the order of mention decide together, an exclusive or that is learnt late or never when both are
# even: so most captions mention the left or upper glyph first.
_PAIRS: Final = {
    "horizontal": (
        (0.58, "{first} to the left of {second}"),
        (0.16, "{second} to the right of {first}"),
        (0.05, "{first} left of {second}"),
        (0.03, "{second} right of {first}"),
        (0.14, "{first} and {second}"),
        (0.04, "{first} next to {second}"),
    ),
    "vertical": (
        (0.62, "{first} above {second}"),
        (0.16, "{second} below {first}"),
        (0.08, "{first} over {second}"),
        (0.03, "{second} under {first}"),
        (0.11, "{first} on top of {second}"),
    ),
}
# Words that say nothing the renderer obeys; a few of them in training keep the model steady
# when a user's prompt holds such words.
FILLERS: Final = (
    "beautiful",
    "big",
    "bright",
    "cartoon",
    "colorful",
    "colourful",
    "cute",
    "detailed",
    "fancy",
    "friendly",
    "funny",
    "great",
    "happy",
    "high",
    "icon",
    "illustration",
    "large",
    "little",
    "lovely",
    "my",
    "nice",
    "of",
    "one",
    "plain",
    "pretty",
    "quality",
    "render",
    "shiny",
    "simple",
    "single",
    "small",
    "some",
    "style",
    "sticker",
    "symbol",
    "that",
    "this",
    "tiny",
    "very",
    "with",
)


def article(noun: str) -> str:
    """Put "a" or "an" before a noun of the glyph table."""
    # "unicorn" starts with a consonant sound.
    vowel = noun[0] in "aeiou" and not noun.startswith("uni")
    return f"{'an' if vowel else 'a'} {noun}"


def _pick(rng: np.random.Generator, options: tuple[tuple[float, str], ...]) -> str:
    total = sum(weight for weight, _ in options)
    draw = rng.random() * total
    for weight, template in options:
        draw -= weight
        if draw < 0:
            return template
    return options[-1][1]


def plain_caption(scene: Scene) -> str:
    """The canonical caption of a scene, as evaluation asks for it."""
    a = [article(name) for name in scene.glyphs]
    end = f" on a {scene.background} background"
    if scene.layout == "horizontal":
        return f"{a[0]} to the left of {a[1]}{end}"
    if scene.layout == "vertical":
        return f"{a[0]} above {a[1]}{end}"
    if scene.layout == "centre":
        return f"{a[0]}{end}"
    return f"{a[0]} in the {scene.layout} corner{end}"


def reversed_caption(scene: Scene) -> str:
    """The canonical caption of a pair that mentions the right or lower glyph first.

    Raises:
        ValueError: ``scene`` is not a pair.
    """
    if scene.layout not in PAIRS:
        raise ValueError(f"only pairs can be captioned in reverse, got {scene}")
    first, second = (article(name) for name in scene.glyphs)
    relation = "to the right of" if scene.layout == "horizontal" else "below"
    return f"{second} {relation} {first} on a {scene.background} background"


def sample_caption(scene: Scene, rng: np.random.Generator) -> str:
    """One of the captions that describe ``scene``.

    A caption may leave the background out only where it is ``DEFAULT_BACKGROUND``, so that
    a prompt without a colour has one answer.
    """
    if scene.layout in PAIRS:
        bare = rng.random() < 0.06
        first, second = (n if bare else article(n) for n in scene.glyphs)
        subject = _pick(rng, _PAIRS[scene.layout]).format(first=first, second=second)
    else:
        name = scene.glyphs[0]
        subject = _pick(rng, _SUBJECTS).format(a=article(name), bare=name)
        if scene.layout != "centre":
            subject = _pick(rng, _CORNERS).format(subject=subject, corner=scene.layout)
    caption = subject
    if scene.background != DEFAULT_BACKGROUND or rng.random() < 0.6:
        caption = _pick(rng, _BACKGROUNDS).format(subject=subject, colour=scene.background)
    return _add_fillers(caption, rng) if rng.random() < 0.08 else caption


def _add_fillers(caption: str, rng: np.random.Generator) -> str:
    words = caption.split(" ")
    for _ in range(int(rng.integers(1, 4))):
        if rng.random() < 0.8:
            filler = FILLERS[rng.integers(len(FILLERS))]
        else:
            letters = rng.integers(ord("a"), ord("z") + 1, size=int(rng.integers(2, 9)))
            filler = "".join(chr(letter) for letter in letters)
        # Either before a word (an adjective) or at the very end (a style tag).
        words.insert(int(rng.integers(0, len(words) + 1)), filler)
    return " ".join(words)


def words() -> tuple[str, ...]:
    """Every word a caption can hold, sorted, without the random fillers."""
    templates = [t for _, t in _SUBJECTS + _BACKGROUNDS + _CORNERS]
    templates += [t for options in _PAIRS.values() for _, t in options]
    text = " ".join([*templates, *NAMES, *COLOURS, *FILLERS, "top bottom left right a an"])
    for mark in ("{a}", "{bare}", "{subject}", "{colour}", "{corner}", "{first}", "{second}", ","):
        text = text.replace(mark, " ")
    return tuple(sorted(set(text.split())))
