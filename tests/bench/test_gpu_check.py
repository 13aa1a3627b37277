import subprocess
from pathlib import Path

import pytest

from bench.gpu_check.reference import published, published_card
from bench.gpu_check.verdicts import Level, Measured, Verdict, report

SCRIPT = Path(__file__).resolve().parents[2] / "deploy" / "gpu-check.sh"
GIB = 2**30


def measured(**changes: object) -> Measured:
    fields = {
        "device": "NVIDIA GeForce RTX 4090",
        "vram": 24 * GIB,
        "idle_latency": 0.7,
        "peak": int(8.3e9),
        "levels": (Level(1, 84.0, 0.7, 0), Level(4, 86.0, 2.8, 0)),
    }
    return Measured(**(fields | changes))  # type: ignore[arg-type]


def verdicts(figures: Measured, planned: int | None = None) -> dict[str, Verdict]:
    known = published("koala-lightning-700m", 1024)
    lines = report(figures, known, published_card(figures.device), planned)
    return {line.subject: line.verdict for line in lines}


def test_a_card_that_does_as_published_passes() -> None:
    found = verdicts(measured(), planned=int(8.0e9))
    assert set(found.values()) == {Verdict.OK}
    assert set(found) == {
        "one image, idle",
        "1 client",
        "4 clients",
        "peak memory",
        "peak by plan",
        "fits the card",
    }


@pytest.mark.parametrize(
    ("changes", "subject"),
    [
        ({"idle_latency": 0.9}, "one image, idle"),
        ({"peak": int(9.3e9)}, "peak memory"),
        ({"peak": int(6.0e9)}, "peak by plan"),
        ({"vram": 8 * 10**9}, "fits the card"),
        ({"levels": (Level(1, 84.0, 0.7, 0), Level(4, 60.0, 4.0, 0))}, "4 clients"),
        ({"levels": (Level(1, 84.0, 0.7, 1), Level(4, 86.0, 2.8, 0))}, "1 client"),
    ],
)
def test_each_line_can_fail_by_itself(changes: dict[str, object], subject: str) -> None:
    found = verdicts(measured(**changes), planned=int(8.2e9))
    assert [name for name, verdict in found.items() if verdict is Verdict.FAIL][:1] == [subject]


def test_without_anything_to_compare_with_a_line_is_a_note() -> None:
    found = verdicts(measured(device="NVIDIA H100 PCIe"))
    notes = {name for name, verdict in found.items() if verdict is Verdict.NOTE}
    assert notes == {"one image, idle", "peak memory", "peak by plan"}
    on_cpu = verdicts(measured(device="", vram=0))
    assert "fits the card" not in on_cpu


@pytest.mark.parametrize(
    ("device", "card"),
    [
        ("NVIDIA GeForce RTX 3060 Ti", "3060ti"),
        ("NVIDIA GeForce RTX 4090", "4090"),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA GeForce RTX 4090 D", None),
        ("NVIDIA GeForce RTX 3060", None),
    ],
)
def test_only_the_papers_own_cards_are_held_against_it(device: str, card: str | None) -> None:
    assert published_card(device) == card


def test_the_script_says_what_it_does_not_know() -> None:
    done = subprocess.run([SCRIPT, "--speed"], capture_output=True, text=True, timeout=240)
    assert (done.returncode, done.stdout) == (2, "")
    assert "what is --speed?" in done.stderr
    told = subprocess.run([SCRIPT, "--help"], capture_output=True, text=True, timeout=240)
    assert told.returncode == 0
    assert "--model koala-turbo-700m" in told.stdout
    assert not told.stdout.startswith("#")
