"""Prompts: the cache, what is encoded for whom, and counting tokens."""

from typing import Any

import pytest
import torch

from tests.worker.engine.support import images, run, sample
from worker.engine import Engine, ResidentPipeline
from worker.engine.conditioning import PromptCache


class CountedCalls:
    """Stands in for ``encode_prompts`` and notes what is encoded."""

    def __init__(self, pipeline: ResidentPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
        self.batches: list[list[str]] = []
        self._encode = pipeline.encode_prompts
        monkeypatch.setattr(pipeline, "encode_prompts", self)

    def __call__(self, prompts: list[str], loras: Any = ()) -> tuple[torch.Tensor, torch.Tensor]:
        self.batches.append(prompts)
        return self._encode(prompts, loras)


@pytest.fixture
def calls(pipeline: ResidentPipeline, monkeypatch: pytest.MonkeyPatch) -> CountedCalls:
    """The calls of the text encoders."""
    return CountedCalls(pipeline, monkeypatch)


def test_all_prompts_of_a_tick_are_encoded_in_one_batch(
    engine: Engine, calls: CountedCalls
) -> None:
    engine.add(sample("a", prompt="a koala", negative_prompt="red"))
    engine.add(sample("b", prompt="a panda", negative_prompt="red"))
    # Without guidance nobody asks for the negative prompt.
    engine.add(sample("c", prompt="a koala", negative_prompt="blue", guidance_scale=1.0))
    engine.step()
    assert calls.batches == [["a koala", "red", "a panda"]]


def test_a_prompt_met_again_is_not_encoded_again_and_gives_the_same_image(
    engine: Engine, calls: CountedCalls
) -> None:
    first = images(run(engine, [sample("first", negative_prompt="red")]))["first"]
    again = images(run(engine, [sample("again", negative_prompt="red")]))["again"]
    assert calls.batches == [["a koala on a blue background", "red"]]
    assert first.tobytes() == again.tobytes()


def test_the_oldest_prompt_is_forgotten_first(
    pipeline: ResidentPipeline, calls: CountedCalls
) -> None:
    cache = PromptCache(pipeline, entries=2)
    one, two, three = (
        sample(prompt, prompt=prompt, guidance_scale=1.0) for prompt in ("one", "two", "three")
    )
    with torch.inference_mode():
        for request in (one, two, one, three, one, two):
            cache.conditioning(request)
    assert calls.batches == [["one"], ["two"], ["three"], ["two"]]
    assert len(cache) == 2


def test_more_prompts_than_the_cache_holds_are_conditioned_all_the_same(
    pipeline: ResidentPipeline,
) -> None:
    requests = [sample(text, prompt=text, guidance_scale=1.0) for text in ("one", "two", "three")]
    small, large = PromptCache(pipeline, entries=1), PromptCache(pipeline)
    with torch.inference_mode():
        small.warm((request, ()) for request in requests)
        for request in requests:
            one, _ = small.conditioning(request)
            other, _ = large.conditioning(request)
            torch.testing.assert_close(one.prompt_embeds, other.prompt_embeds)
            torch.testing.assert_close(one.pooled_prompt_embeds, other.pooled_prompt_embeds)


def test_no_negative_prompt_means_zeros_only_where_the_checkpoint_says_so(
    pipeline: ResidentPipeline, calls: CountedCalls, monkeypatch: pytest.MonkeyPatch
) -> None:
    with torch.inference_mode():
        _, negative = PromptCache(pipeline).conditioning(sample("a", prompt="a koala"))
        assert negative is not None
        assert not negative.prompt_embeds.any()
        assert not negative.pooled_prompt_embeds.any()
        monkeypatch.setattr(pipeline, "force_zeros_for_empty_prompt", False)
        _, negative = PromptCache(pipeline).conditioning(sample("a", prompt="a koala"))
        assert negative is not None
        assert negative.prompt_embeds.any()
    assert calls.batches == [["a koala"], ["a koala"], [""]]


def test_tokens_are_counted_without_marks_and_without_a_limit(pipeline: ResidentPipeline) -> None:
    assert pipeline.count_tokens("") == 0
    one = pipeline.count_tokens("koala")
    assert one >= 1
    assert pipeline.count_tokens("koala " * 200) == 200 * one
    assert pipeline.max_prompt_tokens == 75


def test_a_prompt_longer_than_the_window_is_cut(pipeline: ResidentPipeline) -> None:
    with torch.inference_mode():
        embeds, _ = pipeline.encode_prompts(["a " * 75, "a " * 200])
    assert embeds.shape == (2, 77, 128)
    assert torch.equal(embeds[0], embeds[1])
