"""What is wrong with an option is one line that names it."""

from pathlib import Path
from typing import Any

import pytest

from worker.simulation.options import OptionError, Options
from worker.simulation.workload import Clients, Poisson

PROFILE = "4090/koala-lightning-700m"


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"profile": None}, "--profile"),
        ({"profile": "5090"}, "--profile"),
        ({"curve": Path("curve.json")}, "--curve"),
        ({"clients": "1,two"}, "--clients"),
        ({"clients": "0"}, "--clients"),
        ({"clients": "500"}, "--requests"),
        ({"rate": "1,-2"}, "--rate"),
        ({"rate": "nan"}, "--rate"),
        ({"rate": "1", "clients": "1"}, "--rate"),
        ({"steps": "0..4"}, "--steps"),
        ({"steps": "9..4"}, "--steps"),
        ({"steps": "4.5"}, "--steps"),
        ({"guidance": "-1..4"}, "--guidance"),
        ({"guidance": "inf"}, "--guidance"),
        ({"size": "1024"}, "--size"),
        ({"size": "0x64"}, "--size"),
        ({"size": "64x64:0"}, "--size"),
        ({"size": "64x64,64x64"}, "--size"),
        ({"n": 0}, "--n"),
        ({"gpus": 0}, "--gpus"),
        ({"strategy": "step-level,luck"}, "--strategy"),
        ({"max_rows": 0}, "--max-rows"),
        ({"target_step_ms": 0.0}, "--target-step-ms"),
        ({"requests": 9}, "--requests"),
    ],
)
def test_a_bad_option_is_refused_by_name(changes: dict[str, Any], name: str) -> None:
    with pytest.raises(OptionError) as refusal:
        Options(**({"profile": PROFILE} | changes)).plan()
    message = str(refusal.value)
    assert message.startswith(f"{name}: ")
    assert "\n" not in message


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("{", "Invalid JSON"),
        ('{"name": "x", "sizes": []}', "sizes"),
        (
            '{"name": "x", "sizes": [{"size": [64, 64], "step_seconds": {"0": 1}, '
            '"decode_seconds": 0}]}',
            "sizes.0.step_seconds.0",
        ),
        ('{"name": "x", "sizes": [], "extra": 1}', "sizes"),
    ],
)
def test_a_bad_curve_file_is_refused_by_place(tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "curve.json"
    path.write_text(text)
    with pytest.raises(OptionError) as refusal:
        Options(curve=path).plan()
    message = str(refusal.value)
    assert message.startswith(f"--curve: {path}: ")
    assert complaint in message
    assert "\n" not in message


def test_options_mean_what_they_say() -> None:
    plan = Options(
        profile=PROFILE,
        rate="10,20",
        steps="4..30",
        guidance="0..7",
        size="1024x1024:3,512x512",
        n=2,
        gpus=3,
        max_rows=1,
    ).plan()
    assert plan.loads == (Poisson(10), Poisson(20))
    assert plan.workload.steps == (4, 30)
    assert plan.workload.guidance_scale == (0, 7)
    assert plan.workload.sizes == {(1024, 1024): 3, (512, 512): 1}
    assert (plan.workload.n, plan.gpus) == (2, 3)
    assert plan.device.cap((1024, 1024)) == plan.device.cap((512, 512)) == 1


def test_what_is_left_out_is_the_profiles_own_request_under_more_and_more_clients() -> None:
    plan = Options(profile="4090/koala-turbo-1b").plan()
    assert plan.workload.sizes == {(512, 512): 1}
    assert plan.workload.steps == (10, 10)
    assert plan.loads == tuple(Clients(count) for count in (1, 2, 4, 8, 16))


def test_a_target_for_the_step_keeps_batches_small() -> None:
    free = Options(profile="4090/koala-turbo-700m").plan()
    bound = Options(profile="4090/koala-turbo-700m", target_step_ms=20.0).plan()
    size = (512, 512)
    assert bound.device.cap(size) < free.device.cap(size)
    assert bound.device.seconds(size, bound.device.cap(size)) <= 0.020
