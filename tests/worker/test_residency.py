"""Which residency a worker chooses."""

import pytest
import torch

from koala.catalogue import resolve
from koala.settings import Settings
from worker.engine.residency import Residency
from worker.residency import NothingFits, choose, choose_for

GIB = 2**30
HALF = torch.float16


def test_what_the_settings_name_is_taken() -> None:
    demo, cpu = resolve("koala-demo"), torch.device("cpu")
    for residency in Residency:
        assert choose(Settings(residency=residency), demo, cpu, HALF) is residency
    assert choose(Settings(), demo, cpu, HALF) is Residency.ALL


def test_what_is_free_decides_before_anything_is_loaded() -> None:
    card = resolve("koala-lightning-700m")
    assert choose_for(card, HALF, 8 * GIB) is Residency.ALL
    assert choose_for(card, HALF, 6 * GIB) is Residency.OFFLOAD_TEXT
    with pytest.raises(NothingFits, match=r"needs 2\.\d GiB at the least, 1.0 GiB free"):
        choose_for(card, HALF, GIB)


def test_a_model_whose_configs_come_with_its_weights_is_taken_whole() -> None:
    assert choose_for(resolve("someone/model"), HALF, 8 * GIB) is Residency.ALL
