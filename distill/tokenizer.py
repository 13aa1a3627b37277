"""A CLIP tokenizer whose vocabulary is learnt from the captions.

Byte-level byte-pair encoding with the end-of-word suffix ``</w>`` (Sennrich et al. 2016;
Radford et al. 2019, 2021).  Every caption word is one token; all 256 byte symbols are in the
vocabulary, with and without the suffix, so any other text encodes too.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Final

from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTokenizer

MAX_LENGTH: Final = 77
BOS: Final = "<|startoftext|>"
EOS: Final = "<|endoftext|>"
_END: Final = "</w>"


def learn_merges(words: Iterable[str]) -> list[tuple[str, str]]:
    """Merge the most frequent adjacent pair until every word is one symbol.

    Ties fall to the pair that sorts first, so the result depends on the words alone.
    """
    split = [[*word[:-1], word[-1] + _END] for word in sorted(set(words)) if word]
    merges: list[tuple[str, str]] = []
    while True:
        pairs = Counter(pair for word in split for pair in pairwise(word))
        if not pairs:
            return merges
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        split = [_merge(word, best) for word in split]


def _merge(word: list[str], pair: tuple[str, str]) -> list[str]:
    merged: list[str] = []
    for symbol in word:
        if merged and (merged[-1], symbol) == pair:
            merged[-1] += symbol
        else:
            merged.append(symbol)
    return merged


def build_tokenizer(words: Iterable[str]) -> CLIPTokenizer:
    """Build the tokenizer for captions made of ``words`` (ASCII, lower case).

    Padding uses the end-of-text token, as CLIP's first tokenizer does; the text encoders
    pool at the *first* end-of-text position, so padding does not disturb them.

    Raises:
        ValueError: a word is not lower-case ASCII.
    """
    listed = list(words)
    if bad := [w for w in listed if not w.isascii() or w != w.lower()]:
        raise ValueError(f"caption words must be lower-case ASCII: {bad}")
    alphabet = sorted(ByteLevel.alphabet())
    merges = learn_merges(listed)
    symbols = [*alphabet, *(c + _END for c in alphabet), *(a + b for a, b in merges), BOS, EOS]
    # dict.fromkeys drops the rare symbol that two different merges both produce.
    vocab = {symbol: i for i, symbol in enumerate(dict.fromkeys(symbols))}
    return CLIPTokenizer(
        vocab=vocab,
        merges=merges,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=EOS,
        unk_token=EOS,
        model_max_length=MAX_LENGTH,
    )


def save_tokenizer(tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Save for transformers 5 (tokenizer.json) and 4 (vocab.json with merges.txt)."""
    tokenizer.save_pretrained(folder)
    state = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    (folder / "vocab.json").write_text(
        json.dumps(state["vocab"], ensure_ascii=False), encoding="utf-8"
    )
    lines = [" ".join(merge) for merge in state["merges"]]
    (folder / "merges.txt").write_text(
        "#version: 0.2\n" + "\n".join(lines) + "\n", encoding="utf-8"
    )
