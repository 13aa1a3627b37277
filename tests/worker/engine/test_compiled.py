"""A padded call gives what the call alone gives, and what a failing compiler leads to."""

import sys
from typing import Any

import pytest
import structlog
import torch
from torch._dynamo.exc import TorchDynamoException

from worker.engine import ResidentPipeline
from worker.engine.compiled import CompiledUNet, CompileError, PaddedRows


def inputs(rows: int, side: int = 8) -> dict[str, Any]:
    """The arguments of a call of the demo model's U-Net."""
    generator = torch.Generator().manual_seed(rows)
    return {
        "latents": torch.randn(rows, 4, side, side, generator=generator),
        "timesteps": torch.linspace(1, 999, rows),
        "encoder_hidden_states": torch.randn(rows, 77, 128, generator=generator),
        "added_cond_kwargs": {
            "text_embeds": torch.randn(rows, 64, generator=generator),
            "time_ids": torch.full((rows, 6), 64.0),
        },
    }


@torch.inference_mode()
def call(unet: Any, latents: torch.Tensor, timesteps: torch.Tensor, **kwargs: Any) -> torch.Tensor:
    """The predicted noise."""
    (noise_pred,) = unet(latents, timesteps, **kwargs, return_dict=False)
    assert isinstance(noise_pred, torch.Tensor)
    return noise_pred


class Recorder:
    """Stands before a U-Net and remembers the rows of every argument."""

    def __init__(self, unet: Any) -> None:
        self.unet = unet
        self.rows: set[int] = set()

    def __call__(self, latents: torch.Tensor, timesteps: torch.Tensor, **kwargs: Any) -> Any:
        parts = [latents, timesteps, kwargs["encoder_hidden_states"]]
        self.rows |= {len(part) for part in (*parts, *kwargs["added_cond_kwargs"].values())}
        return self.unet(latents, timesteps, **kwargs)


def test_buckets_are_powers_of_two_and_the_steps_halfway_between() -> None:
    padded = PaddedRows(lambda *_, **__: ())
    assert {padded.bucket(rows) for rows in range(1, 49)} == {1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48}
    for rows in range(1, 200):
        assert rows <= padded.bucket(rows) < 1.5 * rows or rows == padded.bucket(rows)


def test_padding_never_exceeds_the_operators_cap() -> None:
    padded = PaddedRows(lambda *_, **__: (), most_rows=10)
    assert [padded.bucket(rows) for rows in (5, 7, 9, 10)] == [6, 8, 10, 10]
    # One sample that alone takes more than the cap is drawn all the same.
    assert PaddedRows(lambda *_, **__: (), most_rows=1).bucket(2) == 2


@pytest.mark.parametrize(("rows", "bucket"), [(1, 1), (5, 6), (7, 8), (9, 12)])
def test_padded_rows_change_nothing_and_are_cut_off(
    rows: int, bucket: int, pipeline: ResidentPipeline
) -> None:
    recorder = Recorder(pipeline._unet)
    found = call(PaddedRows(recorder), **inputs(rows))
    expected = call(pipeline._unet, **inputs(rows))
    assert recorder.rows == {bucket}
    assert found.shape == expected.shape
    # A pixel's 1/255 is 0.008 of its range; latents are about as large as pixels.
    assert (found - expected).abs().max() < 1e-4


def test_a_size_that_is_not_native_runs_uncompiled_and_says_so_once(
    pipeline: ResidentPipeline,
) -> None:
    unet = CompiledUNet(pipeline._unet)
    with structlog.testing.capture_logs() as logs:
        found = [call(unet, **inputs(3, side=8)) for _ in range(2)]
    assert torch.equal(found[1], call(pipeline._unet, **inputs(3, side=8)))
    assert [(line["event"], line["latents"]) for line in logs] == [
        ("size runs uncompiled", (8, 8)),
    ]


def test_a_bucket_that_cannot_be_compiled_later_runs_uncompiled_and_says_so_once(
    pipeline: ResidentPipeline,
) -> None:
    unet = CompiledUNet(pipeline._unet)
    unet._compiled = _no_compiler
    with structlog.testing.capture_logs() as logs:
        found = [call(unet, **inputs(2, side=16)) for _ in range(2)]
    assert torch.equal(found[1], call(pipeline._unet, **inputs(2, side=16)))
    errors = [line for line in logs if line["log_level"] == "error"]
    assert [(line["rows"], line["error"]) for line in errors] == [(2, "no compiler")]


def test_a_start_at_which_compiling_fails_is_refused_in_one_line(
    pipeline: ResidentPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", sys.executable)
    unet = CompiledUNet(pipeline._unet)
    unet._compiled = _no_compiler
    with pytest.raises(CompileError, match=r"^no compiler$"):
        unet.try_out(tokens=77, pooled_width=64)


def _no_compiler(*_: Any, **__: Any) -> Any:
    raise TorchDynamoException("no compiler\nand a long story")
