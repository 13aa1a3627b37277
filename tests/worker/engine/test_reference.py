"""The engine draws what diffusers' own pipeline draws, alone and in company."""

from typing import Any

import diffusers
import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from PIL import Image

from tests.worker.engine.support import draw, images, largest_difference, run, sample
from worker.engine import Engine, Progress, ResidentPipeline, SampleRequest
from worker.engine.conditioning import PromptCache
from worker.engine.sample import Sample

MIXED = [
    sample("plain", num_inference_steps=3, guidance_scale=1.0),
    sample("guided", num_inference_steps=4, guidance_scale=3.5, seed=11),
    sample("strong", num_inference_steps=2, guidance_scale=7.0, negative_prompt="red", seed=12),
    sample("empty", num_inference_steps=5, guidance_scale=3.5, negative_prompt="", seed=13),
    sample("unused negative", guidance_scale=1.0, negative_prompt="blue", seed=14),
    sample("fraction", prompt="", num_inference_steps=6, guidance_scale=1.3, seed=2**53 - 1),
    sample("wide", width=64, height=32, num_inference_steps=3, seed=15),
    sample("odd latents", width=40, height=56, num_inference_steps=2, seed=16),
]


@pytest.fixture(scope="module")
def together(pipeline: ResidentPipeline) -> dict[str, Image.Image]:
    """All mixed requests, drawn in one engine at once."""
    return images(run(Engine(pipeline, max_rows=32), MIXED))


@pytest.mark.parametrize("request_", MIXED, ids=lambda request: request.key)
def test_an_image_drawn_in_company_is_the_one_diffusers_draws_alone(
    request_: SampleRequest,
    together: dict[str, Image.Image],
    reference: StableDiffusionXLPipeline,
) -> None:
    (expected,) = draw(reference, request_)
    assert largest_difference(together[request_.key], expected) <= 1


@pytest.mark.parametrize("request_", MIXED[1:4], ids=lambda request: request.key)
def test_an_image_drawn_in_company_is_the_one_drawn_alone(
    request_: SampleRequest, together: dict[str, Image.Image], engine: Engine
) -> None:
    alone = images(run(engine, [request_]))
    assert largest_difference(together[request_.key], alone[request_.key]) <= 1


@pytest.mark.parametrize("guidance_scale", [1.0, 3.5, 7.0])
def test_several_images_of_a_prompt_are_those_of_consecutive_seeds(
    guidance_scale: float, engine: Engine, reference: StableDiffusionXLPipeline
) -> None:
    requests = [
        sample(f"{i}", width=64, height=64, guidance_scale=guidance_scale, seed=100 + i)
        for i in range(3)
    ]
    drawn = images(run(engine, requests))
    for request_, expected in zip(requests, draw(reference, *requests), strict=True):
        assert largest_difference(drawn[request_.key], expected) <= 1


def test_images_differ_from_seed_to_seed(engine: Engine) -> None:
    drawn = images(run(engine, [sample("a", seed=1), sample("b", seed=2)]))
    assert largest_difference(drawn["a"], drawn["b"]) > 10


def test_initial_noise_is_bitwise_that_of_diffusers(
    pipeline: ResidentPipeline, reference: StableDiffusionXLPipeline
) -> None:
    request_ = sample("a", width=64, height=32, num_inference_steps=4)
    with torch.inference_mode():
        positive, negative = PromptCache(pipeline).conditioning(request_)
        latents = Sample(request_, pipeline, positive, negative).latents
    reference.scheduler.set_timesteps(4)
    generator = torch.Generator("cpu").manual_seed(request_.seed)
    expected = reference.prepare_latents(
        1, 4, 32, 64, torch.float32, torch.device("cpu"), generator
    )
    assert torch.equal(latents, expected)


@pytest.mark.parametrize(
    "scheduler_class",
    [
        # Takes a generator in every step.
        diffusers.EulerAncestralDiscreteScheduler,
        # Keeps the predictions of earlier steps.
        diffusers.DPMSolverMultistepScheduler,
        # Calls the U-Net twice per step.
        diffusers.HeunDiscreteScheduler,
        # Integer timesteps, and an eta.
        diffusers.DDIMScheduler,
        # Begins with an extra call.
        diffusers.PNDMScheduler,
    ],
)
def test_other_schedulers_of_diffusers_give_what_they_give_there(
    scheduler_class: Any, reference: StableDiffusionXLPipeline
) -> None:
    other = StableDiffusionXLPipeline(**reference.components, add_watermarker=False)
    other.scheduler = scheduler_class.from_config(reference.scheduler.config, skip_prk_steps=True)
    other.set_progress_bar_config(disable=True)
    requests = [
        sample("short", num_inference_steps=2, seed=1),
        sample("long", num_inference_steps=4, seed=2),
    ]
    events = run(Engine(ResidentPipeline(other, "other"), max_rows=8), requests)
    drawn = images(events)
    for request_ in requests:
        (expected,) = draw(other, request_)
        assert largest_difference(drawn[request_.key], expected) <= 1
        steps = [e.step for e in events if isinstance(e, Progress) and e.key == request_.key]
        assert steps == list(range(1, request_.num_inference_steps + 1))
