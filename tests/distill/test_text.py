"""Tokenizer and captions."""

from pathlib import Path

import numpy as np
import pytest
from transformers import CLIPTokenizer

from distill.captions import article, plain_caption, reversed_caption, sample_caption, words
from distill.model import caption_tokenizer, text_config
from distill.scenes import COLOURS, PAIRS, SQUARE, TALL, WIDE, Scene, sample_scene
from distill.tokenizer import MAX_LENGTH, build_tokenizer, learn_merges, save_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> CLIPTokenizer:
    return caption_tokenizer()


def test_every_caption_word_is_one_token(tokenizer: CLIPTokenizer) -> None:
    for word in words():
        assert len(tokenizer(word).input_ids) == 3, word


@pytest.mark.parametrize(
    "text",
    ["a koala on a blue background", "qwxyz", "ünïcödé", "漢字 と かな", "🐨🍌", "tab\tand 1234!?"],
)
def test_any_text_round_trips(tokenizer: CLIPTokenizer, text: str) -> None:
    ids = tokenizer(text).input_ids
    # The tokenizer sets words, digits and punctuation apart, so compare without spaces.
    decoded = tokenizer.decode(ids, skip_special_tokens=True)
    assert "".join(decoded.split()) == "".join(text.split())
    assert ids[0] == tokenizer.bos_token_id and ids[-1] == tokenizer.eos_token_id
    assert tokenizer.eos_token_id not in ids[:-1]


def test_padding_suits_the_pooling_of_the_text_encoders(tokenizer: CLIPTokenizer) -> None:
    ids = tokenizer("koala", padding="max_length").input_ids
    config = text_config(tokenizer)
    assert len(ids) == MAX_LENGTH == config.max_position_embeddings
    # transformers pools at the first end-of-text id, unless that id is the legacy value 2.
    assert config.eos_token_id == tokenizer.eos_token_id != 2
    assert ids.index(config.eos_token_id) == 2


def test_saved_tokenizer_loads_the_same(tokenizer: CLIPTokenizer, tmp_path: Path) -> None:
    save_tokenizer(tokenizer, tmp_path)
    loaded = CLIPTokenizer.from_pretrained(tmp_path)
    text = "an owl, ünï 🐨 zebra"
    assert loaded(text).input_ids == tokenizer(text).input_ids
    assert loaded.model_max_length == MAX_LENGTH


def test_merges_do_not_depend_on_word_order() -> None:
    assert learn_merges(["lemon", "on", "melon"]) == learn_merges(["melon", "lemon", "on"])


def test_tokenizer_refuses_words_it_would_not_keep_whole() -> None:
    with pytest.raises(ValueError, match="lower-case ASCII"):
        build_tokenizer(["Koala"])


def test_articles() -> None:
    assert [article(n) for n in ("koala", "owl", "unicorn", "ice cream")] == [
        "a koala",
        "an owl",
        "a unicorn",
        "an ice cream",
    ]


def test_captions_are_deterministic_and_name_what_is_there() -> None:
    def draw(seed: int) -> list[tuple[Scene, str]]:
        rng = np.random.default_rng(seed)
        sizes = [SQUARE, WIDE, TALL]
        scenes = [sample_scene(rng, sizes[i % 3]) for i in range(600)]
        return [(scene, sample_caption(scene, rng)) for scene in scenes]

    drawn = draw(3)
    assert drawn == draw(3)
    assert drawn != draw(4)
    known = set(words())
    strange = 0
    for scene, caption in drawn:
        split = set(caption.replace(",", " ").split())
        assert all(set(name.split()) <= split for name in scene.glyphs)
        # A caption without a colour has one answer: white.
        assert scene.background in split or scene.background == "white"
        strange += not split <= known
    assert 0 < strange < 30


def test_reversed_pair_captions_swap_the_names() -> None:
    scene = Scene(("koala", "banana"), "horizontal", "blue")
    rng = np.random.default_rng(0)
    captions = {sample_caption(scene, rng) for _ in range(300)}
    assert "a koala to the left of a banana on a blue background" in captions
    assert "a banana to the right of a koala on a blue background" in captions
    for caption in captions:
        if "right of" in caption:
            assert caption.index("banana") < caption.index("koala")
        elif "left of" in caption:
            assert caption.index("koala") < caption.index("banana")


def test_canonical_pair_captions_read_from_either_side() -> None:
    scene = Scene(("owl", "koala"), "vertical", "red")
    assert plain_caption(scene) == "an owl above a koala on a red background"
    assert reversed_caption(scene) == "a koala below an owl on a red background"
    with pytest.raises(ValueError, match="only pairs"):
        reversed_caption(Scene(("owl",), "centre", "red"))


def test_plain_captions_differ() -> None:
    scenes = [Scene(("koala", "owl"), layout, c) for layout in PAIRS for c in COLOURS]
    assert len({plain_caption(scene) for scene in scenes}) == len(scenes)
