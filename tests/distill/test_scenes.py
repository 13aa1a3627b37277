"""Scenes, the atlas, and reading pictures back."""

import numpy as np
import pytest

from distill.evaluate import evaluate, evaluation_scenes, judge, summarise
from distill.glyphs import NAMES, glyphs_at, load_atlas
from distill.matching import accepts, read
from distill.scenes import SQUARE, TALL, WIDE, Scene, boxes, render, sample_scene

SUBSET = NAMES[::9]


def test_the_atlas_holds_every_glyph() -> None:
    assert len(load_atlas()) == len(NAMES) >= 100
    assert "koala" in NAMES
    for name, image in zip(NAMES, load_atlas(), strict=True):
        assert np.asarray(image)[..., 3].mean() > 20, name


def test_glyph_size_is_checked() -> None:
    with pytest.raises(ValueError, match="glyph size"):
        glyphs_at(65)


@pytest.mark.parametrize("size", [SQUARE, WIDE, TALL])
def test_rendering_is_deterministic_and_has_the_right_shape(size: tuple[int, int]) -> None:
    first, second = (sample_scene(np.random.default_rng(5), size) for _ in range(2))
    assert first == second
    picture = render(first)
    assert picture.shape == (size[1], size[0], 3)
    assert picture.min() >= 0.0 and picture.max() <= 1.0
    assert np.array_equal(picture, render(second))


@pytest.mark.parametrize("size", [SQUARE, WIDE, TALL])
def test_boxes_lie_inside_and_apart(size: tuple[int, int]) -> None:
    for layout in ("horizontal", "vertical"):
        first, second = boxes(layout, size)
        assert second.x >= first.x + first.side or second.y >= first.y + first.side
        assert second.x + second.side <= size[0] and second.y + second.side <= size[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((("koala",), "horizontal", "blue"), "takes 2 glyphs"),
        ((("wombat",), "centre", "blue"), "unknown glyph"),
        ((("koala",), "centre", "beige"), "unknown background"),
        ((("koala",), "centre", "blue", (32, 64)), "at least 64"),
    ],
)
def test_impossible_scenes_are_refused(arguments: tuple[object, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Scene(*arguments)  # type: ignore[arg-type]


def test_reading_exact_renders_is_always_right() -> None:
    scenes = evaluation_scenes(SUBSET)
    summary = summarise(judge(scenes, [render(scene) for scene in scenes]))
    for part in ("single", "corner", "pair_objects", "pair_order", "background", "everything"):
        assert summary[part] == 1.0, part
    assert summary["wrong"] == []


def test_reading_survives_noise_and_fails_on_wrong_pictures() -> None:
    scene = Scene(("koala",), "centre", "blue")
    picture = render(scene)
    noise = np.random.default_rng(0).normal(0, 0.08, picture.shape).astype(np.float32)
    assert accepts(scene, np.clip(picture + noise, 0, 1))
    assert not accepts(scene, render(Scene(("panda",), "centre", "blue")))
    assert not accepts(scene, render(Scene(("koala",), "centre", "purple")))
    assert not accepts(scene, render(Scene(("koala",), "top left", "blue")))
    random = np.random.default_rng(1).random(picture.shape, np.float32)
    assert read(random)[1] > 0.2 and not accepts(read(random)[0], random)


def test_a_swapped_pair_has_the_objects_but_not_the_order() -> None:
    asked = Scene(("koala", "banana"), "horizontal", "white")
    swapped = render(Scene(("banana", "koala"), "horizontal", "white"))
    summary = summarise(judge([asked], [swapped]))
    assert (summary["pair_objects"], summary["pair_order"]) == (1.0, 0.0)
    assert summary["single"] is None


def test_evaluation_fails_a_painter_that_ignores_its_prompt() -> None:
    same = render(Scene(("koala",), "centre", "blue"))
    summary = evaluate(lambda prompts, seeds: [same] * len(prompts), evaluation_scenes(SUBSET))
    assert summary["everything"] < 0.05
    assert summary["pair_order_reversed"] == 0.0


def test_every_glyph_is_evaluated() -> None:
    scenes = evaluation_scenes()
    for name in NAMES:
        singles = [s for s in scenes if s.glyphs == (name,) and s.layout == "centre"]
        assert len({s.background for s in singles}) == 2
        assert any(len(s.glyphs) == 2 and s.glyphs[0] == name for s in scenes)
    with pytest.raises(ValueError, match="unknown glyph"):
        evaluation_scenes(["wombat"])


def test_pictures_of_the_wrong_shape_are_refused() -> None:
    with pytest.raises(ValueError, match="expected"):
        read(np.zeros((32, 64, 3), np.float32))
