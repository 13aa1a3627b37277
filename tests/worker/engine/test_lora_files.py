"""LoRA files that are spoilt, for another model, replaced or gone; and how many are kept."""

import json
import math
import pickle
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from koala.catalogue import DEMO_FOLDER
from koala.lora import LoraError, LoraFolder, LoraUse
from tests.loras import Tensors, kohya, peft, write
from tests.worker.engine.conftest import TRAILING
from tests.worker.engine.support import images, largest_difference, run, sample, take
from worker.engine import (
    DoesNotFit,
    Engine,
    Failed,
    Finished,
    ResidentPipeline,
    SampleRequest,
)
from worker.engine.lora import Adapter, shelf
from worker.engine.lora.adapter import read_adapter

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
    "cut": (peft(), truncated, "it is truncated"),
    "nan": (change(peft(), to=torch.full((4, 32), float("nan"))), None, f"{KEY} holds NaN"),
    "whole": (
        change(peft(), to=torch.ones(4, 32, dtype=torch.int64)),
        None,
        f"{KEY} is of the number format I64",
    ),
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
    "high_rank": (
        peft(rank=70_000, unet=["time_embedding.linear_1"]),
        None,
        "that is no low-rank adapter",
    ),
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
        take(lora_pipeline.loras, LoraUse(name="told"))


def test_a_lora_that_is_gone_is_named_with_those_near_it(lora_pipeline: ResidentPipeline) -> None:
    with pytest.raises(LoraError, match=r"there is no LoRA 'gold'; near it: .*'good'"):
        take(lora_pipeline.loras, LoraUse(name="gold"))


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
    [first] = take(loaded.loras, LoraUse(name="kept0"))
    loaded.loras._most_bytes = 2 * first.adapter.bytes
    second, again, third = (
        take(loaded.loras, LoraUse(name=name))[0] for name in ("kept1", "kept0", "kept2")
    )
    assert len(loaded.loras) == 2 and loaded.loras.bytes == 2 * first.adapter.bytes
    # The one that was used longest ago had to go.
    kept = take(loaded.loras, LoraUse(name="kept2"), LoraUse(name="kept0"))
    assert [lora.adapter for lora in kept] == [third.adapter, first.adapter]
    assert again.adapter is first.adapter
    assert take(loaded.loras, LoraUse(name="kept1"))[0].adapter is not second.adapter


def huge(path: Path, key: str, shape: tuple[int, ...]) -> None:
    """A LoRA whose matrix ``key`` is a hole in the file: no disk is needed, but memory if read."""
    tensors = {k: v for k, v in peft(unet=["time_embedding.linear_1"]).items() if k != key}
    header, end = {}, 0
    for name, each in {key: shape, **{k: tuple(v.shape) for k, v in tensors.items()}}.items():
        begin, end = end, end + 4 * math.prod(each)
        header[name] = {"dtype": "F32", "shape": each, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)


def peak_bytes() -> int:
    """The most memory that this process had since the peak was last forgotten."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        ((2**26, 32), "has the shapes (67108864, 32) and (128, 4)"),
        ((4, 2**29), "has the shapes (4, 536870912) and (128, 4)"),
    ],
)
def test_eight_gibibytes_of_a_wrong_shape_are_refused_before_they_are_read(
    shape: tuple[int, int], reason: str, folder: Path, lora_pipeline: ResidentPipeline
) -> None:
    huge(folder / "huge.safetensors", KEY, shape)
    engine = Engine(lora_pipeline, max_rows=8)
    run(engine, [sample("before")])
    Path("/proc/self/clear_refs").write_text("5")
    before = peak_bytes()
    events = run(engine, [sample("bad", lora=(LoraUse(name="huge"),)), sample("good")])
    assert peak_bytes() - before < 256 * 2**20
    [failed] = [event for event in events if isinstance(event, Failed)]
    assert failed.key == "bad" and reason in str(failed.error)
    assert "good" in {event.key for event in events if isinstance(event, Finished)}


class Gate:
    """Holds up the thread that reads the numbers of a LoRA until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.opened = threading.Event()
        self.reached = threading.Event()

        def read(*arguments: Any) -> Any:
            self.reached.set()
            assert self.opened.wait(60)
            return read_adapter(*arguments)

        monkeypatch.setattr(shelf, "read_adapter", read)


def test_images_without_loras_are_drawn_while_one_is_read(
    folder: Path, lora_pipeline: ResidentPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(folder, "slow", peft(seed=3))
    gate, engine = Gate(monkeypatch), Engine(lora_pipeline, max_rows=8)
    engine.add(sample("slow", lora=(LoraUse(name="slow"),)))
    engine.add(sample("cancelled", lora=(LoraUse(name="slow"),)))
    while not gate.reached.is_set():
        engine.step()
    drawn = [event.key for event in finish(engine, [sample("plain"), sample("other")])]
    assert drawn == ["plain", "other"]
    assert (engine.in_flight, engine.waiting, engine.has_room) == (0, 2, True)
    engine.remove("cancelled")
    gate.opened.set()
    assert [event.key for event in run(engine) if isinstance(event, Finished)] == ["slow"]


def finish(engine: Engine, requests: list[SampleRequest]) -> list[Finished]:
    """The events of images that are drawn while others wait."""
    for request in requests:
        engine.add(request)
    found: list[Finished] = []
    for _ in range(200):
        found += [event for event in engine.step() if isinstance(event, Finished)]
        if len(found) == len(requests):
            return found
    raise AssertionError("they are held up")


def test_a_file_replaced_while_it_is_read_is_used_as_it_is_then(
    folder: Path, lora_pipeline: ResidentPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(folder, "moving", peft(seed=4))
    gate, engine = Gate(monkeypatch), Engine(lora_pipeline, max_rows=8)
    engine.add(sample("a", lora=(LoraUse(name="moving"),)))
    while not gate.reached.is_set():
        engine.step()
    write(folder, "moving", peft(seed=5, rank=8))
    gate.opened.set()
    drawn = images(run(engine))["a"]
    write(folder, "moved", peft(seed=5, rank=8))
    expected = images(run(engine, [sample("a", lora=(LoraUse(name="moved"),))]))["a"]
    assert largest_difference(drawn, expected) == 0


def test_a_file_cut_while_it_is_read_fails_its_own_request(
    folder: Path, lora_pipeline: ResidentPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(folder, "shrinking", peft(seed=4))
    gate, engine = Gate(monkeypatch), Engine(lora_pipeline, max_rows=8)
    engine.add(sample("a", lora=(LoraUse(name="shrinking"),)))
    while not gate.reached.is_set():
        engine.step()
    truncated(path)
    gate.opened.set()
    events = run(engine, [sample("plain")])
    [failed] = [event for event in events if isinstance(event, Failed)]
    assert failed.key == "a" and "it is truncated" in str(failed.error)
    assert [event.key for event in events if isinstance(event, Finished)] == ["plain"]


def test_the_drawing_thread_leaves_the_disk_to_others_and_looks_once_a_sample(
    folder: Path, lora_pipeline: ResidentPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[str] = []
    find = LoraFolder.find

    def noted(self: LoraFolder, name: str) -> Any:
        looks.append(threading.current_thread().name)
        return find(self, name)

    monkeypatch.setattr(LoraFolder, "find", noted)
    use = (LoraUse(name="good"), LoraUse(name="good", weight=0.5))
    images(run(Engine(lora_pipeline, max_rows=8), [sample("a", lora=use), sample("b", lora=use)]))
    assert len(looks) == 2
    assert threading.current_thread().name not in looks


@pytest.mark.parametrize("failures", [1, 9])
def test_a_lora_without_memory_on_the_device_waits_for_room_and_fails_alone(
    failures: int,
    folder: Path,
    lora_pipeline: ResidentPipeline,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write(folder, "heavy", peft(seed=6))
    left = [failures]
    to = Adapter.to

    def short(self: Adapter, device: torch.device) -> Adapter:
        """A device whose memory runs out, which a CPU's does not."""
        left[0] -= 1
        if left[0] >= 0:
            raise torch.OutOfMemoryError("no")
        return to(self, device)

    monkeypatch.setattr(Adapter, "to", short)
    engine = Engine(lora_pipeline, max_rows=8)
    heavy = sample("heavy", lora=(LoraUse(name="heavy"),))
    events = run(engine, [sample("plain", num_inference_steps=4), heavy, sample("late")])
    failed = [event for event in events if isinstance(event, Failed)]
    assert [type(event.error) for event in failed] == [DoesNotFit] * (failures > 1)
    drawn = {event.key for event in events if isinstance(event, Finished)}
    assert drawn == {"plain", "late"} | ({"heavy"} if failures == 1 else set())
