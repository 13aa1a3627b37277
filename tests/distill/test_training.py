"""Short training runs: they learn, and they resume as if they had not stopped."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from distill.checkpoint import Budget, TrainState, learning_rate
from distill.latents import Bucket
from distill.model import build_scheduler, build_unet, caption_tokenizer, time_ids
from distill.progress import Reporter
from distill.scenes import Scene
from distill.train_unet import min_snr_weight, stratified_timesteps, train_unet
from distill.train_vae import laplacian_loss, train_autoencoder

QUIET = Reporter(quiet=True)


def _pool() -> list[Bucket]:
    generator = torch.Generator().manual_seed(0)
    pool = []
    for width, height in ((64, 64), (96, 64), (64, 96)):
        scenes = [
            Scene(("koala",), "centre", "blue", (width, height)),
            Scene(("owl",), "top left", "red", (width, height)),
            Scene(("koala", "owl"), "vertical", "white", (width, height)),
        ]
        mean = torch.randn(3, 4, height // 4, width // 4, generator=generator).half()
        kinds = (range(0, 1), range(1, 2), range(2, 3))
        pool.append(Bucket(scenes, kinds, mean, torch.full_like(mean, 0.01)))
    return pool


def _weights(module: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def test_unet_training_resumes_identically(tmp_path: Path) -> None:
    tokenizer = caption_tokenizer()

    def run(path: Path, stop: int = -1) -> Tensor:
        return _weights(
            train_unet(
                _pool(),
                1.0,
                tokenizer,
                path,
                Budget(steps=4),
                QUIET,
                batch=2,
                on_step=lambda state: state.step == stop,
            )
        )

    whole = run(tmp_path / "whole.pt")
    interrupted = run(tmp_path / "part.pt", stop=2)
    assert not torch.equal(interrupted, whole)
    assert torch.equal(run(tmp_path / "part.pt"), whole)
    # A finished run trains no further.
    assert torch.equal(run(tmp_path / "part.pt"), whole)


def test_autoencoder_training_resumes_identically(tmp_path: Path) -> None:
    def run(path: Path, stop: int = -1) -> Tensor:
        vae = train_autoencoder(
            path, Budget(steps=4), QUIET, batch=2, stop_at=lambda step: step == stop
        )
        return _weights(vae)

    whole = run(tmp_path / "whole.pt")
    run(tmp_path / "part.pt", stop=2)
    assert torch.equal(run(tmp_path / "part.pt"), whole)


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    def state(width: int) -> TrainState[nn.Linear]:
        module = nn.Linear(2, width)
        return TrainState(module, torch.optim.AdamW(module.parameters()), seed=0)

    state(3).save(tmp_path / "state.pt")
    with pytest.raises(RuntimeError, match="size mismatch"):
        state(4).load(tmp_path / "state.pt")


@pytest.mark.parametrize(("steps", "seconds"), [(None, None), (1, 1.0), (0, None), (None, -1.0)])
def test_budgets_are_checked(steps: int | None, seconds: float | None) -> None:
    with pytest.raises(ValueError, match="budget"):
        Budget(steps, seconds)


def test_learning_rate_warms_up_holds_and_decays() -> None:
    rates = [learning_rate(1.0, step, step / 1000) for step in range(1001)]
    assert rates[0] == 0.01 and rates[100] == rates[500] == 1.0
    assert rates[750] < 0.6 and rates[1000] == pytest.approx(0.01)


def test_min_snr_weights_clip_the_easy_timesteps() -> None:
    alphas = build_scheduler().alphas_cumprod
    weights = min_snr_weight(alphas, 5.0)
    assert weights[0] < 0.01
    assert weights[-1] == 1.0


def test_timesteps_cover_the_schedule_evenly() -> None:
    steps = stratified_timesteps(10, 1000, torch.Generator().manual_seed(0))
    assert sorted(int(step) // 100 for step in steps) == list(range(10))


def test_the_laplacian_loss_weighs_fine_errors_above_flat_ones() -> None:
    target = torch.zeros(1, 3, 16, 16)
    flat = torch.full_like(target, 0.1)
    signs = torch.randn(target.shape, generator=torch.Generator().manual_seed(0)).sign()
    assert laplacian_loss(target, target) == 0
    assert laplacian_loss(0.1 * signs, target) > laplacian_loss(flat, target) > 0


def test_time_ids_are_height_first() -> None:
    assert time_ids((96, 64), 2).tolist() == [[64, 96, 0, 0, 64, 96]] * 2


def test_the_unet_has_koalas_shape() -> None:
    unet = build_unet()
    assert unet.mid_block is None
    parameters = sum(p.numel() for p in unet.parameters())
    assert 4_000_000 < parameters < 4_500_000
