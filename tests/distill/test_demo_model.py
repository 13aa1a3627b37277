"""The exported checkpoint in ``models/demo``."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPipeline

from distill.card import model_card
from distill.evaluate import TARGETS
from distill.export import MODEL_DIR, load_pipeline
from distill.matching import accepts
from distill.painters import PipelinePainter, to_array
from distill.scenes import TALL, WIDE, Scene

pytestmark = pytest.mark.skipif(
    not (MODEL_DIR / "model_index.json").is_file(), reason="models/demo is not trained yet"
)


@pytest.fixture(scope="module")
def pipeline() -> StableDiffusionXLPipeline:
    return load_pipeline()


def test_the_folder_is_small_and_complete() -> None:
    size = sum(path.stat().st_size for path in MODEL_DIR.rglob("*") if path.is_file())
    assert size <= 20e6
    for name in ("README.md", "metrics.json", "samples.png"):
        assert (MODEL_DIR / name).is_file(), name
    index = json.loads((MODEL_DIR / "model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusionXLPipeline"
    assert index["force_zeros_for_empty_prompt"] is True


def test_the_card_states_the_measured_figures() -> None:
    metrics = json.loads((MODEL_DIR / "metrics.json").read_text())
    assert (MODEL_DIR / "README.md").read_text() == model_card(metrics)
    assert all(metrics["evaluation"][key] >= goal for key, goal in TARGETS.items())


def test_it_loads_in_one_precision(pipeline: StableDiffusionXLPipeline) -> None:
    parts = (pipeline.unet, pipeline.vae, pipeline.text_encoder, pipeline.text_encoder_2)
    assert {part.dtype for part in parts} == {torch.float32}
    assert pipeline.vae_scale_factor == 4
    assert pipeline.default_sample_size == 16


@pytest.mark.parametrize(
    ("prompt", "scene"),
    [
        ("a koala on a blue background", Scene(("koala",), "centre", "blue")),
        ("a photo of a koala", Scene(("koala",), "centre", "white")),
        ("koala on green", Scene(("koala",), "centre", "green")),
    ],
)
def test_it_draws_a_koala(pipeline: StableDiffusionXLPipeline, prompt: str, scene: Scene) -> None:
    (picture,) = PipelinePainter(pipeline)([prompt], [3])
    assert accepts(scene, picture)


@pytest.mark.parametrize("size", [WIDE, TALL])
def test_other_sizes_work(pipeline: StableDiffusionXLPipeline, size: tuple[int, int]) -> None:
    width, height = size
    image = pipeline(
        "a koala on a blue background",
        width=width,
        height=height,
        num_inference_steps=10,
        guidance_scale=3.5,
        generator=torch.Generator().manual_seed(0),
    ).images[0]
    assert accepts(Scene(("koala",), "centre", "blue", size), to_array(image))


@pytest.mark.parametrize("negative", [None, ""])
def test_both_kinds_of_unconditional_prompt_work(
    pipeline: StableDiffusionXLPipeline, negative: str | None
) -> None:
    image = pipeline(
        "a fox on a pink background",
        negative_prompt=negative,
        num_inference_steps=8,
        guidance_scale=5.0,
        generator=torch.Generator().manual_seed(1),
    ).images[0]
    assert accepts(Scene(("fox",), "centre", "pink"), to_array(image))


def test_the_evaluation_command_judges_the_folder() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "distill.evaluate", "--glyphs", "4"],
        capture_output=True,
        text=True,
        check=True,
        cwd=MODEL_DIR.parent.parent,
    )
    result = json.loads(done.stdout)
    assert result["pictures"] == 16
    assert result["everything"] >= 0.7
    assert np.isfinite(result["mean_rmse"])
