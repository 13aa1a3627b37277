from pathlib import Path

import pytest
import torch
from PIL import ImageStat

from distill.random_checkpoint import make
from koala.architecture import UNETS
from koala.catalogue import resolve
from tests.worker.engine.support import images, run, sample
from worker.engine import Engine, ResidentPipeline


@pytest.mark.parametrize("model", sorted(UNETS))
def test_a_narrow_model_of_the_family_loads_and_draws(model: str, tmp_path: Path) -> None:
    folder = tmp_path / model
    make(model, folder, torch.float16, side=64, narrow=10)
    card = resolve(str(folder))
    assert (card.native_side, card.size_error(64, 64)) == (64, None)
    pipeline = ResidentPipeline.load(folder, device="cpu")
    assert pipeline.native_side == 64
    request = sample("a", width=64, height=64, num_inference_steps=2)
    drawn = images(run(Engine(pipeline, max_rows=2), [request]))["a"]
    assert drawn.size == (64, 64)
    assert min(ImageStat.Stat(drawn).stddev) > 0


def test_the_same_seed_gives_the_same_weights(tmp_path: Path) -> None:
    for name in "ab":
        make("koala-700m", tmp_path / name, torch.bfloat16, narrow=10, seed=1)
    [a, b] = [
        (tmp_path / name / "vae" / "diffusion_pytorch_model.safetensors").read_bytes()
        for name in "ab"
    ]
    assert a == b


def test_nothing_is_overwritten_and_the_model_must_be_known(tmp_path: Path) -> None:
    with pytest.raises(FileExistsError):
        make("koala-700m", tmp_path, torch.float16)
    with pytest.raises(ValueError, match="model: 'koala-2b' is none of koala-700m"):
        make("koala-2b", tmp_path / "new", torch.float16)
    with pytest.raises(ValueError, match="side: 100 is not a multiple of 8"):
        make("koala-700m", tmp_path / "new", torch.float16, side=100)
