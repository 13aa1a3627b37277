"""What fits on a card, against published figures."""

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console

from koala.catalogue import DEMO_FOLDER, resolve
from worker.engine.memory import RESERVE_BYTES
from worker.engine.residency import Residency
from worker.planning.architecture import architecture_of
from worker.planning.cards import CARDS, PUBLISHED_PEAKS
from worker.planning.options import OptionError, Options
from worker.planning.plan import Plan
from worker.planning.run import run

LIGHTNING = "koala-lightning-700m"
GIB = 2**30


@pytest.fixture(scope="module")
def plan() -> Plan:
    """KOALA-Lightning-700M at 1024 px in fp16."""
    return Plan(architecture_of(resolve(LIGHTNING)), (1024, 1024), torch.float16)


def test_the_peak_is_what_was_published_for_cards_with_room_to_spare(plan: Plan) -> None:
    for card in ("2080ti", "4090"):
        assert plan.peak(Residency.ALL) == pytest.approx(PUBLISHED_PEAKS[card, LIGHTNING], rel=0.05)


def test_a_card_that_is_nearly_full_gives_convolutions_less_workspace(plan: Plan) -> None:
    published = PUBLISHED_PEAKS["3060ti", LIGHTNING]
    assert plan.least(Residency.ALL) == pytest.approx(published, rel=0.15)
    assert published < plan.peak(Residency.ALL)


def test_each_residency_takes_less_than_the_one_before(plan: Plan) -> None:
    peaks = [plan.peak(residency) for residency in Residency]
    assert peaks == sorted(peaks, reverse=True) and len(set(peaks)) == len(peaks)


def test_offloaded_text_encoders_count_while_they_encode_and_only_then(plan: Plan) -> None:
    there, visiting = (plan.phases(r) for r in (Residency.ALL, Residency.OFFLOAD_TEXT))
    text = plan.forecast.text_bytes
    saved = {a.name: a.weights - b.weights for a, b in zip(there, visiting, strict=True)}
    assert saved == {"encode": 0, "step": text, "decode": text}


def test_the_first_residency_that_fits_is_chosen(plan: Plan) -> None:
    chosen = [plan.choose(vram * GIB) for vram in (24, 8, 7, 6, 4)]
    assert chosen == ["all", "all", "offload_text", "tile_vae", "tile_vae"]
    assert plan.choose(plan.peak(Residency.FP8_UNET) + RESERVE_BYTES) is Residency.FP8_UNET
    assert plan.choose(2 * GIB) is None


def test_the_most_rows_that_fit_are_those_whose_peak_leaves_the_reserve(plan: Plan) -> None:
    for residency in Residency:
        vram = CARDS["3060ti"].vram
        most = plan.most_rows(residency, vram)
        assert plan.peak(residency, most) + RESERVE_BYTES <= vram
        assert plan.peak(residency, 2 * most) + RESERVE_BYTES > vram
    assert plan.most_rows(Residency.ALL, 6 * GIB) == 0


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["nowhere"], "There is no model 'nowhere'"),
        (["someone/model"], "MODEL: model is neither in a folder here nor a model known by name"),
        (["koala-demo", "--vram", "much"], "--vram: bytes, such as 8GiB, got 'much'"),
        (["koala-demo", "--size", "64x65"], "--size: 64x65: both sides must be multiples of 16"),
        (["koala-demo", "--card", "voodoo"], "--card: there is no 'voodoo'"),
        (["koala-demo", "--dtype", "int8"], "--dtype: one of float16, bfloat16, float32"),
        (["koala-demo", "--attention", "good"], "--attention: one of fused, math"),
    ],
)
def test_an_option_that_cannot_be_used_is_named(arguments: list[str], complaint: str) -> None:
    from typer.testing import CliRunner

    from koala.cli import app

    done = CliRunner().invoke(app, ["plan", *arguments])
    assert done.exit_code == 1
    assert complaint in " ".join(done.output.split())


def test_a_folder_of_config_files_without_weights_is_enough(tmp_path: Path) -> None:
    for part in ("unet", "vae", "text_encoder", "text_encoder_2"):
        (tmp_path / part).mkdir()
        config = DEMO_FOLDER / part / "config.json"
        (tmp_path / part / "config.json").write_bytes(config.read_bytes())
    done = subprocess.run(
        [sys.executable, "-m", "koala", "plan", str(tmp_path), "--vram", "1GiB", "--json"],
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["chosen"] == "all"
    # 4.27 million parameters in fp16.
    assert told["weights"]["unet"] == pytest.approx(2 * 4.27e6, rel=0.01)
    assert told["residencies"]["all"]["images_per_minute"] == {}


def test_the_tables_fit_a_terminal_of_80_columns() -> None:
    console = Console(width=80, record=True, file=io.StringIO())
    run(Options("koala-lightning-1b", vram="6GiB", size="512x512"), False, console)
    told = console.export_text()
    assert "…" not in told
    assert "KOALA_RESIDENCY=auto chooses all." in told
    [line] = [line.split() for line in told.splitlines() if line.startswith("all ")]
    # Published is 0.92 s on the 3060 Ti for that U-Net at 512 px.
    assert line[3:6] == ["yes", "24", "65.2"]


def test_a_broken_config_is_named(tmp_path: Path) -> None:
    for part in ("unet", "vae", "text_encoder", "text_encoder_2"):
        (tmp_path / part).mkdir()
        (tmp_path / part / "config.json").write_bytes(
            (DEMO_FOLDER / part / "config.json").read_bytes()
        )
    (tmp_path / "vae" / "config.json").write_text('{"block_out_channels": [1, 2]}')
    with pytest.raises(OptionError, match="the configs make no model"):
        Options(str(tmp_path)).question()
    (tmp_path / "text_encoder" / "config.json").unlink()
    with pytest.raises(OptionError, match=r"text_encoder/config.json: No such file"):
        Options(str(tmp_path)).question()
