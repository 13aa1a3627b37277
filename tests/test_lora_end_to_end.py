"""LoRAs through the whole service: over HTTP, in one batch with requests that want none."""

import io
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from PIL import Image

from koala.catalogue import DEMO_FOLDER, resolve
from koala.lora import LoraFolder, LoraUse
from tests.loras import kohya, peft, write
from tests.support import Stack, free_port, running
from worker.engine import Engine, Finished, ResidentPipeline, SampleRequest
from worker.images import read_metadata


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two LoRAs, one for another model, one that is none."""
    folder = tmp_path_factory.mktemp("loras")
    write(folder, "watercolour", peft(seed=1, text=True))
    write(folder, "slider", kohya(seed=2, sgm=True))
    write(folder, "foreign", {"unet.elsewhere.lora_A.weight": torch.ones(4, 4)})
    (folder / "spoilt.safetensors").write_bytes(b"not at all")
    return folder


@pytest.fixture(scope="module")
def metrics_port() -> int:
    """Where the worker tells of itself."""
    return free_port()


@pytest.fixture(scope="module")
def lora_stack(
    folder: Path, metrics_port: int, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stack]:
    """The service with these LoRAs."""
    env = {"KOALA_LORA_DIR": str(folder), "KOALA_METRICS_PORT": str(metrics_port)}
    with running(tmp_path_factory.mktemp("lora-stack"), **env) as stack:
        yield stack


def post(stack: Stack, **fields: Any) -> httpx.Response:
    body = {"prompt": "a koala", "num_inference_steps": 6, "size": "64x64", "seed": 7} | fields
    return httpx.post(f"{stack.base_url}/v1/images/generations", json=body, timeout=300)


def drawn_alone(pipeline: ResidentPipeline, seed: int, lora: list[dict[str, Any]]) -> Image.Image:
    engine = Engine(pipeline, max_rows=2)
    uses = tuple(LoraUse.model_validate(each) for each in lora)
    engine.add(SampleRequest("alone", "a koala", None, 64, 64, 6, 3.5, seed, lora=uses))
    while True:
        for event in engine.step():
            if isinstance(event, Finished):
                return event.image


def test_requests_with_different_loras_and_without_get_their_own_images(
    lora_stack: Stack, folder: Path
) -> None:
    wanted: list[list[dict[str, Any]]] = [
        [],
        [{"name": "watercolour"}],
        [{"name": "slider", "weight": -1.5}],
        [{"name": "watercolour", "weight": 0.4}, {"name": "slider", "weight": 0.7}],
        [{"name": "slider"}, {"name": "foreign"}],
        [],
        [{"name": "spoilt"}],
    ]
    with ThreadPoolExecutor(len(wanted)) as pool:
        answers = list(
            pool.map(lambda i: post(lora_stack, seed=i, lora=wanted[i]), range(len(wanted)))
        )
    for i, param, says in (
        (4, "lora.1.name", "The LoRA 'foreign' cannot be used: it is for another model"),
        (6, "lora.0.name", "The LoRA 'spoilt' cannot be used: it is no safetensors file"),
    ):
        refused = answers[i]
        assert refused.status_code == 400 and refused.headers["x-should-retry"] == "false"
        error = refused.json()["error"]
        assert (error["code"], error["param"]) == ("lora_unusable", param)
        assert says in error["message"]

    overrides = resolve("koala-demo").scheduler_overrides
    pipeline = ResidentPipeline.load(
        DEMO_FOLDER, device="cpu", scheduler_overrides=overrides, loras=LoraFolder(folder)
    )
    for seed in (0, 1, 2, 3, 5):
        body = answers[seed].json()
        assert [use["name"] for use in body["lora"]] == [use["name"] for use in wanted[seed]]
        image = Image.open(io.BytesIO(httpx.get(body["data"][0]["url"]).content))
        alone = drawn_alone(pipeline, seed, wanted[seed])
        difference = np.abs(np.asarray(image, int) - np.asarray(alone, int))
        assert difference.max() <= 1, wanted[seed]


def test_an_image_tells_of_its_loras_and_the_command_asks_for_them(
    lora_stack: Stack, tmp_path: Path
) -> None:
    def generate(*options: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "koala", "generate", "a koala", *options],
            env=os.environ | {"KOALA_URL": lora_stack.base_url, "COLUMNS": "200"},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=300,
        )

    done = generate("-o", "a.png", "--lora", "watercolour:0.8", "--lora", "slider")
    assert done.returncode == 0, done.stderr
    parameters = read_metadata((tmp_path / "a.png").read_bytes())["parameters"]
    assert parameters.startswith("a koala <lora:watercolour:0.8> <lora:slider:1>\n")
    for option, says in (
        ("watercolor", "`lora.0.name`: there is no LoRA 'watercolor'; near it: 'watercolour'."),
        ("slider:much", "--lora: slider:much: the weight 'much' is no number."),
    ):
        failed = generate("--lora", option)
        assert failed.returncode == 1
        assert says in failed.stderr


def test_the_worker_tells_of_the_memory_that_loras_take(
    lora_stack: Stack, metrics_port: int
) -> None:
    assert post(lora_stack, lora=[{"name": "watercolour"}]).is_success
    lines = httpx.get(f"http://127.0.0.1:{metrics_port}/metrics").text.splitlines()
    [line] = [line for line in lines if line.startswith('koala_memory_bytes{kind="loras"}')]
    assert float(line.split()[-1]) > 10_000
