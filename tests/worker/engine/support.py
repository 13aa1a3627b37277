"""What the engine's tests share beside fixtures."""

import os
from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from diffusers import StableDiffusionXLPipeline
from PIL import Image

from koala.lora import LoraUse
from worker.engine import Engine, EngineEvent, Failed, Finished, SampleRequest
from worker.engine.lora import AppliedLora, Shelf


def sample(key: str, **changes: Any) -> SampleRequest:
    """A request: two steps at 32 px unless told otherwise."""
    fields: dict[str, Any] = {
        "prompt": "a koala on a blue background",
        "negative_prompt": None,
        "width": 32,
        "height": 32,
        "num_inference_steps": 2,
        "guidance_scale": 3.5,
        "seed": 7,
    }
    return SampleRequest(key=key, **(fields | changes))


def run(engine: Engine, requests: Iterable[SampleRequest] = ()) -> list[EngineEvent]:
    """Draw everything; all events."""
    for request in requests:
        engine.add(request)
    events: list[EngineEvent] = []
    for _ in range(200):
        if engine.is_idle:
            return events
        events += engine.step()
    raise AssertionError("the engine does not come to an end")


def take(shelf: Shelf, *uses: LoraUse) -> tuple[AppliedLora, ...]:
    """LoRAs, once they are there."""
    order = shelf.order(uses)
    for _ in range(200):
        found = shelf.fill(order)
        if found is not None:
            return found
        shelf.wait(1.0)
    raise AssertionError("they never come")


def images(events: Iterable[EngineEvent]) -> dict[Any, Image.Image]:
    """The images among ``events``, by key; nothing may have failed."""
    found = {}
    for event in events:
        assert not isinstance(event, Failed), event.error
        if isinstance(event, Finished):
            found[event.key] = event.image
    return found


def draw(reference: StableDiffusionXLPipeline, *requests: SampleRequest) -> list[Image.Image]:
    """The images of requests that differ in their seeds only, by diffusers."""
    (first, *_) = requests
    arguments: dict[str, Any] = {
        "prompt": first.prompt,
        "negative_prompt": first.negative_prompt,
        "num_inference_steps": first.num_inference_steps,
        "guidance_scale": first.guidance_scale,
        "num_images_per_prompt": len(requests),
        "generator": [torch.Generator("cpu").manual_seed(r.seed) for r in requests],
    }
    found = reference(width=first.width, height=first.height, **arguments).images
    return list(found)


def largest_difference(one: Image.Image, other: Image.Image) -> int:
    """The largest difference of any channel of any pixel, in 1/255."""
    assert one.size == other.size and one.mode == other.mode == "RGB"
    return int(np.abs(np.asarray(one, np.int16) - np.asarray(other, np.int16)).max())


def without_compiler() -> AbstractContextManager[Any]:
    """Inside, torch is told of a C++ compiler that is not there."""
    return patch.dict(os.environ, {"CXX": "no-such-compiler"})
