"""The black image of SDXL: a VAE that overflows in fp16 is asked again in fp32."""

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL

from koala.catalogue import DEMO_FOLDER
from tests.worker.engine.conftest import TRAILING
from tests.worker.engine.support import images, run, sample
from worker.engine import Engine, Failed, ResidentPipeline
from worker.engine.sample import NonFiniteError

# Takes values far beyond the 65504 that fp16 can hold, and no weight beyond it.
FACTOR = 2e4

REQUESTS = [sample("a", num_inference_steps=4), sample("b", num_inference_steps=4, seed=2)]


def make_overflow(vae: AutoencoderKL) -> None:
    """Scale the decoder's residual stream up; its last normalization takes the factor out again.

    So the same pixels come out, but for what overflows: just what ails SDXL's VAE.
    """
    decoder = vae.decoder
    resnets = [*decoder.mid_block.resnets, *(r for b in decoder.up_blocks for r in b.resnets)]
    added = [decoder.conv_in, *(resnet.conv2 for resnet in resnets)]
    added += [attention.to_out[0] for attention in decoder.mid_block.attentions if attention]
    # These see the stream as it is and pass it on; only what they add of their own is scaled.
    passed = [resnet.conv_shortcut for resnet in resnets if resnet.conv_shortcut is not None]
    passed += [up.conv for block in decoder.up_blocks for up in block.upsamplers or ()]
    with torch.no_grad():
        for layer in added:
            layer.weight.mul_(FACTOR)
        for layer in (*added, *passed):
            layer.bias.mul_(FACTOR)


@pytest.fixture(scope="module")
def half() -> ResidentPipeline:
    """The demo model in fp16."""
    return ResidentPipeline.load(
        DEMO_FOLDER, device="cpu", dtype="float16", scheduler_overrides=TRAILING
    )


@pytest.fixture(scope="module")
def overflowing() -> ResidentPipeline:
    """The same with a VAE that overflows."""
    pipeline = ResidentPipeline.load(
        DEMO_FOLDER, device="cpu", dtype="float16", scheduler_overrides=TRAILING
    )
    make_overflow(pipeline._vae)
    return pipeline


def test_what_overflowed_in_fp16_is_drawn_in_fp32(
    half: ResidentPipeline, overflowing: ResidentPipeline
) -> None:
    with torch.inference_mode():
        latents = torch.zeros(1, 4, 8, 8, dtype=torch.float16)
        assert not torch.isfinite(overflowing.decode(latents)).all()
    engine = Engine(overflowing, max_rows=8)
    events, upcasts = [], 0
    for request in REQUESTS:
        engine.add(request)
    while not engine.is_idle:
        events += engine.step()
        upcasts += engine.last_tick.upcasts
    assert upcasts == 2
    sound = images(run(Engine(half, max_rows=8), REQUESTS))
    for key, image in images(events).items():
        difference = np.abs(np.asarray(image, int) - np.asarray(sound[key], int))
        assert difference.max() <= 4, key
    # Only for the one call: fp32 weights take twice the memory.
    assert overflowing.vae_is_half


def test_nothing_is_decoded_twice_that_was_right(half: ResidentPipeline) -> None:
    engine = Engine(half, max_rows=8)
    engine.add(sample("a", num_inference_steps=1))
    engine.step()
    assert (engine.last_tick.decoded, engine.last_tick.upcasts) == (1, 0)


def test_what_is_no_number_in_fp32_either_fails_its_sample(
    half: ResidentPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode = half.decode
    monkeypatch.setattr(half, "decode", lambda latents: decode(latents) * float("nan"))
    [failed] = [event for event in run(Engine(half, max_rows=8), REQUESTS[:1])][-1:]
    assert isinstance(failed, Failed)
    assert isinstance(failed.error, NonFiniteError)
    assert half.vae_is_half
