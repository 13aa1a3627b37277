"""LoRAs: what diffusers draws with them, row by row, and nothing for anybody else."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from PIL import Image

from koala.catalogue import DEMO_FOLDER
from koala.lora import LoraFolder, LoraUse
from tests.loras import UNET, kohya, peft, write
from tests.worker.engine.conftest import TRAILING
from tests.worker.engine.support import draw, images, largest_difference, run, sample, take
from worker.engine import Engine, ResidentPipeline, SampleRequest
from worker.engine.lora import RowLoras
from worker.engine.residency import Residency

# Half of what the matrices say, and for one layer twice that.
ALPHAS = {
    "unet.r": 4,
    "unet.lora_alpha": 2,
    "unet.alpha_pattern": {"time_embedding.linear_1": 8},
    "unet.target_modules": list(UNET),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some LoRAs."""
    folder = tmp_path_factory.mktemp("loras")
    write(folder, "plain", peft(seed=1))
    write(folder, "other", peft(seed=2, rank=8, unet=["time_embedding.linear_1"], strength=3.0))
    write(folder, "half", peft(seed=3), ALPHAS)
    write(folder, "kohya", kohya(seed=4))
    write(folder, "sgm", kohya(seed=4, sgm=True))
    write(folder, "words", peft(seed=5, unet=[], text=True))
    write(folder, "all", peft(seed=6, text=True))
    return folder


@pytest.fixture(scope="module")
def lora_pipeline(folder: Path) -> ResidentPipeline:
    """The demo model with these LoRAs at hand."""
    return ResidentPipeline.load(
        DEMO_FOLDER, device="cpu", scheduler_overrides=TRAILING, loras=LoraFolder(folder)
    )


@pytest.fixture(autouse=True)
def is_quiet(caplog: pytest.LogCaptureFixture) -> None:
    """diffusers warns of every part of the model that a LoRA leaves alone."""
    caplog.set_level(logging.ERROR, logger="diffusers")


def use(**weights: float) -> tuple[LoraUse, ...]:
    return tuple(LoraUse(name=name, weight=weight) for name, weight in weights.items())


MIXED = [
    sample("none", num_inference_steps=4),
    sample("plain", num_inference_steps=4, lora=use(plain=1.0)),
    sample("weaker", num_inference_steps=3, lora=use(plain=0.5), seed=8),
    sample("less than nothing", lora=use(plain=-0.7), guidance_scale=1.0, seed=9),
    sample("two", num_inference_steps=4, lora=use(plain=0.6, other=1.3), seed=10),
    sample("alpha", num_inference_steps=3, lora=use(half=1.0), seed=11),
    sample("kohya", num_inference_steps=3, lora=use(kohya=0.8), seed=12),
    sample("words", num_inference_steps=3, lora=use(words=1.0), seed=13),
    sample("all", num_inference_steps=3, lora=use(all=0.9), negative_prompt="red", seed=14),
    sample("none either", num_inference_steps=3, guidance_scale=1.0, seed=15),
]


@pytest.fixture(scope="module")
def together(lora_pipeline: ResidentPipeline) -> dict[str, Image.Image]:
    """All requests, with different LoRAs and without any, in one batch."""
    return images(run(Engine(lora_pipeline, max_rows=32), MIXED))


@contextmanager
def wearing(
    reference: StableDiffusionXLPipeline, folder: Path, uses: tuple[LoraUse, ...]
) -> Iterator[None]:
    """diffusers' pipeline with the LoRAs, by its own means and PEFT's."""
    if not uses:
        yield
        return
    try:
        for each in uses:
            reference.load_lora_weights(
                str(folder), weight_name=f"{each.name}.safetensors", adapter_name=f"{each.name}_"
            )
        reference.set_adapters([f"{each.name}_" for each in uses], [each.weight for each in uses])
        yield
    finally:
        reference.unload_lora_weights()


@pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute")
@pytest.mark.parametrize("request_", MIXED, ids=lambda request: request.key)
def test_an_image_drawn_in_mixed_company_is_the_one_diffusers_draws_with_its_loras(
    request_: SampleRequest,
    together: dict[str, Image.Image],
    reference: StableDiffusionXLPipeline,
    folder: Path,
) -> None:
    with wearing(reference, folder, request_.lora):
        (expected,) = draw(reference, request_)
    assert largest_difference(together[request_.key], expected) <= 1
    if request_.lora:
        (without,) = draw(reference, request_)
        assert largest_difference(expected, without) > 10


def test_kohyas_names_for_sdxl_mean_the_same_layers(
    lora_pipeline: ResidentPipeline, together: dict[str, Image.Image]
) -> None:
    renamed = replace(MIXED[6], lora=use(sgm=0.8))
    drawn = images(run(Engine(lora_pipeline, max_rows=32), [renamed]))
    assert largest_difference(drawn["kohya"], together["kohya"]) <= 1


def test_rows_without_a_lora_get_the_very_numbers_that_they_get_alone(
    lora_pipeline: ResidentPipeline,
) -> None:
    draw = torch.Generator().manual_seed(0)
    inputs = (
        torch.randn(4, 4, 8, 8, generator=draw),
        torch.tensor([999, 500, 20, 1]),
        torch.randn(4, 77, 128, generator=draw),
        torch.randn(4, 64, generator=draw),
        torch.full((4, 6), 64.0),
    )
    loras = [
        (),
        take(lora_pipeline.loras, *use(plain=1.0)),
        (),
        take(lora_pipeline.loras, *use(all=1)),
    ]
    with torch.inference_mode():
        without = lora_pipeline.predict_noise(*inputs)
        rows = RowLoras(loras, lora_pipeline.device)
        mixed = lora_pipeline.predict_noise(*inputs, loras=rows)
        after = lora_pipeline.predict_noise(*inputs)
    assert torch.equal(mixed[[0, 2]], without[[0, 2]])
    assert (mixed[[1, 3]] - without[[1, 3]]).abs().amax(dim=(1, 2, 3)).min() > 0.01
    assert torch.equal(after, without)


def test_images_without_a_lora_are_the_same_before_and_after_images_with_one(
    lora_pipeline: ResidentPipeline, pipeline: ResidentPipeline
) -> None:
    engine = Engine(lora_pipeline, max_rows=8)
    run(engine, [sample("first", lora=use(all=1.0))])
    plain = [sample("a"), sample("b", seed=2)]
    drawn, expected = images(run(engine, plain)), images(run(Engine(pipeline, max_rows=8), plain))
    assert all(largest_difference(drawn[key], expected[key]) == 0 for key in ("a", "b"))


def test_a_lora_that_changes_prompts_changes_them_for_its_own_requests_only(
    lora_pipeline: ResidentPipeline,
) -> None:
    engine = Engine(lora_pipeline, max_rows=8)
    requests = [sample("with", lora=use(words=1.0)), sample("without"), sample("not so", lora=())]
    drawn = images(run(engine, requests))
    assert largest_difference(drawn["with"], drawn["without"]) > 10
    assert largest_difference(drawn["without"], drawn["not so"]) == 0


def test_a_guided_image_with_loras_is_drawn_row_by_row_where_no_more_fit(
    lora_pipeline: ResidentPipeline, together: dict[str, Image.Image]
) -> None:
    drawn = images(run(Engine(lora_pipeline, max_rows=1), [MIXED[4]]))
    assert largest_difference(drawn["two"], together["two"]) <= 1


def test_a_compiled_unet_is_passed_by_where_there_are_loras(
    folder: Path, together: dict[str, Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = ResidentPipeline.load(
        DEMO_FOLDER, device="cpu", scheduler_overrides=TRAILING, loras=LoraFolder(folder)
    )

    def compiled(*_: Any, **__: Any) -> None:
        raise AssertionError("a graph was compiled without hooks")

    monkeypatch.setattr(loaded, "_run_unet", compiled)
    drawn = images(run(Engine(loaded, max_rows=8), [MIXED[1]]))
    assert largest_difference(drawn["plain"], together["plain"]) <= 1


@pytest.mark.parametrize("residency", [Residency.OFFLOAD_TEXT, Residency.FP8_UNET])
def test_loras_add_to_parts_that_are_kept_elsewhere_or_in_8_bits(
    residency: Residency, folder: Path, together: dict[str, Image.Image]
) -> None:
    loaded = ResidentPipeline.load(
        DEMO_FOLDER,
        device="cpu",
        scheduler_overrides=TRAILING,
        residency=residency,
        loras=LoraFolder(folder),
    )
    requests = [MIXED[0], MIXED[1], MIXED[7]]
    drawn = images(run(Engine(loaded, max_rows=8), requests))
    plain = images(run(Engine(loaded, max_rows=8), [replace(r, lora=()) for r in requests]))
    assert largest_difference(drawn["none"], plain["none"]) <= 1
    for key in ("plain", "words"):
        assert largest_difference(drawn[key], plain[key]) > 10
        if not residency.narrows_unet:
            assert largest_difference(drawn[key], together[key]) <= 1


def test_loras_go_with_the_weights_and_come_back_with_them(
    folder: Path, together: dict[str, Image.Image]
) -> None:
    loaded = ResidentPipeline.load(
        DEMO_FOLDER, device="cpu", scheduler_overrides=TRAILING, loras=LoraFolder(folder)
    )
    take(loaded.loras, *use(all=1.0, plain=1.0))
    loaded.unload()
    assert loaded.loras.bytes == 0
    loaded.reload()
    drawn = images(run(Engine(loaded, max_rows=32), MIXED))
    assert all(largest_difference(drawn[key], together[key]) <= 1 for key in drawn)
