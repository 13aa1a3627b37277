"""LoRA files that are spoilt, for another model, replaced or gone; and how many are kept."""

import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from koala.catalogue import DEMO_FOLDER
from koala.lora import LoraFolder, LoraUse
from tests.loras import Tensors, kohya, peft, write
from tests.worker.engine.conftest import TRAILING
from tests.worker.engine.support import images, largest_difference, run, sample
from worker.engine import Engine, Failed, Finished, LoraError, ResidentPipeline

KEY = "unet.time_embedding.linear_1.lora_A.weight"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one good LoRA."""
    folder = tmp_path_factory.mktemp("loras")
    write(folder, "good", peft(seed=1))
    return folder


@pytest.fixture(scope="module")
def lora_pipeline(folder: Path) -> ResidentPipeline:
    """The demo model and that folder."""
    return ResidentPipeline.load(
        DEMO_FOLDER, device="cpu", scheduler_overrides=TRAILING, loras=LoraFolder(folder)
    )


def change(tensors: Tensors, **changes: torch.Tensor | None) -> Tensors:
    """The tensors with that of ``KEY`` replaced or removed."""
    tensors = dict(tensors)
    value = changes["to"]
    if value is None:
        del tensors[KEY]
    else:
        tensors[KEY] = value
    return tensors


def as_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps({KEY: 1}))


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def doubled_names(tensors: Tensors) -> Tensors:
    return tensors | {key.replace("lora_A", "lora.down"): v.clone() for key, v in tensors.items()}


SPOILT: dict[str, tuple[Tensors, Callable[[Path], None] | None, str]] = {
    "pickle": (peft(), as_pickle, "no safetensors file"),
    "cut": (peft(), truncated, "no safetensors file"),
    "nan": (change(peft(), to=torch.full((4, 32), float("nan"))), None, f"{KEY} holds NaN"),
    "whole": (change(peft(), to=torch.ones(4, 32, dtype=torch.int64)), None, f"{KEY} holds NaN"),
    "wide": (change(peft(), to=torch.ones(4, 33)), None, "the model's layer wants (4, 32)"),
    "flat": (change(peft(), to=torch.ones(4)), None, "the model's layer wants (4, 32)"),
    "no_rank": (
        change(peft(rank=0, unet=["time_embedding.linear_1"]), to=torch.ones(0, 32)),
        None,
        "has the shapes (0, 32) and (128, 0)",
    ),
    "number": (change(peft(), to=torch.tensor(1.0)), None, "has the shapes ()"),
    "one_matrix": (change(peft(), to=None), None, "linear_1 has only one of its two matrices"),
    "twice": (doubled_names(peft()), None, "another key is for too"),
    "dora": (
        peft() | {"unet.time_embedding.linear_1.lora_magnitude_vector": torch.ones(128)},
        None,
        "these keys fit no layer: unet.time_embedding.linear_1.lora_magnitude_vector",
    ),
    "loha": (
        {"lora_unet_time_embed_0.hada_w1_a": torch.ones(4, 4)},
        None,
        "fit no layer: lora_unet_time_embed_0.hada_w1_a",
    ),
    "other_model": (
        {f"lora_unet_mid_block_resnets_{i}_conv1.lora_up.weight": torch.ones(1) for i in range(9)},
        None,
        "and 6 more",
    ),
    "odd_blocks": (
        {"lora_unet_input_blocks_x_0.alpha": torch.ones(1)},
        None,
        "it names blocks as no SDXL U-Net does",
    ),
    "two_ways": (kohya() | kohya(sgm=True), None, "fit no layer: lora_unet_input_blocks_2_0_op"),
    "two_alphas": (
        kohya() | {"lora_unet_time_embedding_linear_1.alpha": torch.ones(2)},
        None,
        "more than one alpha",
    ),
    "empty": ({}, None, "it is empty"),
}


@pytest.mark.parametrize("name", SPOILT)
def test_a_spoilt_file_fails_its_own_request_and_says_why(
    name: str, folder: Path, lora_pipeline: ResidentPipeline
) -> None:
    tensors, spoil, reason = SPOILT[name]
    path = write(folder, name, tensors)
    if spoil is not None:
        spoil(path)
    requests = [
        sample("bad", lora=(LoraUse(name="good"), LoraUse(name=name))),
        sample("good", lora=(LoraUse(name="good"),)),
        sample("none"),
    ]
    events = run(Engine(lora_pipeline, max_rows=8), requests)
    [failed] = [event for event in events if isinstance(event, Failed)]
    assert failed.key == "bad" and isinstance(failed.error, LoraError)
    message = str(failed.error)
    assert message.startswith(f"The LoRA {name!r} cannot be used: ")
    assert reason in message and "\n" not in message
    assert {event.key for event in events if isinstance(event, Finished)} == {"good", "none"}


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        ({"unet.use_dora": True}, "it is a DoRA"),
        ({"unet.lora_alpha": "much"}, "gives no number as alpha"),
        ([], "is no object"),
    ],
)
def test_settings_in_a_header_that_cannot_be_honoured_are_refused(
    header: object, reason: str, folder: Path, lora_pipeline: ResidentPipeline
) -> None:
    write(folder, "told", peft(), header)
    with pytest.raises(LoraError, match=reason):
        lora_pipeline.loras.take([LoraUse(name="told")])


def test_a_lora_that_is_gone_is_named_with_those_near_it(lora_pipeline: ResidentPipeline) -> None:
    with pytest.raises(LoraError, match=r"there is no LoRA 'gold'; near it: .*'good'"):
        lora_pipeline.loras.take([LoraUse(name="gold")])


def test_a_file_that_was_replaced_is_read_again(
    folder: Path, lora_pipeline: ResidentPipeline
) -> None:
    request = sample("a", lora=(LoraUse(name="changing"),))
    engine = Engine(lora_pipeline, max_rows=8)
    drawn = []
    for seed in (1, 1, 2):
        write(folder, "changing", peft(seed=seed, text=True))
        drawn.append(images(run(engine, [request]))["a"])
    assert largest_difference(drawn[0], drawn[1]) == 0
    assert largest_difference(drawn[0], drawn[2]) > 10


def test_no_more_is_kept_than_fits(folder: Path) -> None:
    for i in range(3):
        write(folder, f"kept{i}", peft(seed=i))
    loaded = ResidentPipeline.load(DEMO_FOLDER, device="cpu", loras=LoraFolder(folder))
    [first] = loaded.loras.take([LoraUse(name="kept0")])
    loaded.loras._most_bytes = 2 * first.adapter.bytes
    second, again, third = loaded.loras.take(
        [LoraUse(name=name) for name in ("kept1", "kept0", "kept2")]
    )
    assert len(loaded.loras) == 2 and loaded.loras.bytes == 2 * first.adapter.bytes
    # The one that was used longest ago had to go.
    kept = loaded.loras.take([LoraUse(name="kept2"), LoraUse(name="kept0")])
    assert [lora.adapter for lora in kept] == [third.adapter, first.adapter]
    assert again.adapter is first.adapter
    assert loaded.loras.take([LoraUse(name="kept1")])[0].adapter is not second.adapter
