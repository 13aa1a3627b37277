"""Predictions without memory, beside what real calls take."""

from collections.abc import Callable

import pytest
import torch

from bench.plan_check import measured_peak
from koala.catalogue import DEMO_FOLDER, resolve
from worker.engine import ResidentPipeline
from worker.planning.architecture import architecture_of
from worker.planning.attention import Attention
from worker.planning.forecast import Forecast, Need
from worker.planning.liveness import FixedAttention, LiveBytes

# Text encoders, U-Net and VAE of the demo model, called as the worker calls them.
CALLS = {
    "encode": (lambda f: f.encode, lambda p: p.encode_prompts(["", ""])),
    "one row": (lambda f: f.step((128, 128), 1), lambda p: step(p, 128, 1)),
    "eight rows": (lambda f: f.step((128, 128), 8), lambda p: step(p, 128, 8)),
    "sixteen small rows": (lambda f: f.step((64, 64), 16), lambda p: step(p, 64, 16)),
    "four images": (lambda f: f.decode((64, 64), 4), lambda p: p.decode(torch.zeros(4, 4, 16, 16))),
}


@pytest.fixture(scope="module")
def pipeline() -> ResidentPipeline:
    return ResidentPipeline.load(DEMO_FOLDER, device="cpu")


@pytest.fixture(scope="module")
def forecast() -> Forecast:
    return Forecast(architecture_of(resolve("koala-demo")), torch.float32)


def step(pipeline: ResidentPipeline, side: int, rows: int) -> torch.Tensor:
    embeds, pooled = pipeline.encode_prompts([""])
    return pipeline.predict_noise(
        torch.zeros(rows, 4, side // 4, side // 4),
        torch.zeros(rows),
        embeds.expand(rows, -1, -1).contiguous(),
        pooled.expand(rows, -1).contiguous(),
        torch.zeros(rows, 6),
    )


@pytest.mark.parametrize("name", CALLS)
@torch.inference_mode()
def test_a_call_takes_within_15_percent_of_what_was_predicted(
    name: str, pipeline: ResidentPipeline, forecast: Forecast
) -> None:
    predict: Callable[[Forecast], Need] = CALLS[name][0]
    call: Callable[[ResidentPipeline], object] = CALLS[name][1]
    measured = measured_peak(lambda: call(pipeline))
    assert predict(forecast).activations == pytest.approx(measured, rel=0.15)


@torch.inference_mode()
def test_the_workspace_of_a_convolution_is_within_what_was_allowed_for(
    pipeline: ResidentPipeline, forecast: Forecast
) -> None:
    need = forecast.decode((128, 128), 1)
    measured = measured_peak(lambda: pipeline.decode(torch.zeros(1, 4, 32, 32)))
    assert need.activations <= measured <= need.total


def test_what_lies_between_measured_rows_is_on_a_straight_line(forecast: Forecast) -> None:
    on_the_line = forecast.step((64, 64), 16)
    as_run = forecast._step_as_run((64, 64), 16, narrow=False)
    assert on_the_line.activations == pytest.approx(as_run.activations, rel=0.001)
    assert on_the_line.workspace == as_run.workspace


def test_weights_take_what_the_loaded_ones_take(
    pipeline: ResidentPipeline, forecast: Forecast
) -> None:
    weights = forecast.unet_bytes() + forecast.vae_bytes + forecast.text_bytes
    # Positions of tokens are no parameters.
    assert weights == pytest.approx(pipeline.parameter_bytes, rel=0.001)


def test_an_8_bit_unet_takes_a_quarter_of_fp32_and_widens_one_layer_at_a_time(
    forecast: Forecast,
) -> None:
    assert forecast.unet_bytes(narrow=True) < 0.27 * forecast.unet_bytes()
    wide, narrow = forecast.step((64, 64), 2), forecast.step((64, 64), 2, narrow=True)
    assert wide.activations < narrow.activations
    assert narrow.activations < wide.activations + 0.2 * forecast.unet_bytes()


def test_attention_with_all_scores_in_memory_takes_more(forecast: Forecast) -> None:
    architecture = architecture_of(resolve("koala-demo"))
    math = Forecast(architecture, torch.float32, Attention.MATH)
    fused, full = (f.step((128, 128), 2).activations for f in (forecast, math))
    # Scores and their softmax of 16 by 16 latents among each other, for 2 rows and 2 heads.
    assert full - fused > 0
    with FixedAttention(Attention.MATH), LiveBytes() as memory:
        query = torch.zeros(2, 2, 256, 32)
        torch.nn.functional.scaled_dot_product_attention(query, query, query)
    assert memory.peak >= 2 * 2 * 2 * 256 * 256 * 4


def test_tiles_take_less_than_the_whole_and_a_batch_as_much_as_its_images(
    forecast: Forecast,
) -> None:
    whole = forecast.decode((1024, 1024), 1)
    assert forecast.decode((1024, 1024), 2).activations == 2 * whole.activations
    assert forecast.decode_tiled((1024, 1024)).total < whole.total / 2


def test_live_bytes_count_storages_once_and_forget_what_is_dropped() -> None:
    known = torch.zeros(1024)
    with LiveBytes([known]) as memory:
        first = known + 1
        assert memory.peak == 4096
        views = [first.view(2, 512), first[:10]]
        assert memory.peak == 4096
        del first, views
        known + 2
    assert memory.peak == 4096
    assert memory.largest == 4096
