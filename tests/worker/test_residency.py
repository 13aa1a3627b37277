"""Which residency a worker chooses."""

import pytest
import torch

from koala.catalogue import resolve
from koala.settings import Settings
from worker.engine.residency import Residency
from worker.planning.architecture import architecture_of
from worker.planning.forecast import Forecast
from worker.planning.plan import Plan
from worker.residency import NothingFits, Predicted, choose, choose_for

HALF = torch.float16


def test_what_the_settings_name_is_taken() -> None:
    demo, cpu = resolve("koala-demo"), torch.device("cpu")
    for residency in Residency:
        assert choose(Settings(residency=residency), demo, cpu, HALF) is residency
    assert choose(Settings(), demo, cpu, HALF) is Residency.ALL


def test_what_is_free_decides_before_anything_is_loaded() -> None:
    card = resolve("koala-demo")
    plan = Plan(architecture_of(card), (64, 64), HALF, context=0, reserve=0)
    all_of_it = plan.peak(Residency.ALL)
    assert choose_for(card, HALF, all_of_it) is Residency.ALL
    assert choose_for(card, HALF, all_of_it - 1) is Residency.OFFLOAD_TEXT
    assert choose_for(card, HALF, plan.peak(Residency.FP8_UNET)) is Residency.FP8_UNET
    with pytest.raises(NothingFits, match=r"needs \d\.\d MiB at the least, 1.0 MiB free"):
        choose_for(card, HALF, 2**20)


def test_the_engine_is_told_what_the_planner_foresees() -> None:
    forecast = Forecast(architecture_of(resolve("koala-demo")), HALF)
    wide, narrow = Predicted(forecast, Residency.ALL), Predicted(forecast, Residency.FP8_UNET)
    assert wide.step_bytes((64, 64), 2) == forecast.step((64, 64), 2).activations
    assert narrow.step_bytes((64, 64), 2) > wide.step_bytes((64, 64), 2)
    assert wide.decode_bytes((64, 64)) == forecast.decode((64, 64), 1).total


def test_a_model_whose_configs_come_with_its_weights_is_taken_whole() -> None:
    assert choose_for(resolve("someone/model"), HALF, 2**33) is Residency.ALL
