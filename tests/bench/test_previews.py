"""What previews cost: the command, and the worker that draws them in one way."""

import os
import subprocess
import sys

import pytest

from bench.drawn_previews import drawing
from bench.previews import Way
from koala.catalogue import resolve
from tests.worker.engine.support import run, sample
from worker.engine import Engine, Preview, ResidentPipeline


@pytest.fixture(scope="module")
def pipeline() -> ResidentPipeline:
    return ResidentPipeline.load(resolve("koala-demo").source, device="cpu")


@pytest.mark.parametrize("way", Way)
def test_previews_take_their_share_of_the_time_or_whatever_it_takes(
    pipeline: ResidentPipeline, way: Way
) -> None:
    steps = frozenset(range(1, 12))
    request = sample("a", num_inference_steps=12, preview_steps=steps)
    with drawing(way):
        engine = Engine(pipeline, max_rows=2)
        engine.charge_previews(1.0)
        engine._previewer.earn(100.0)
        events = run(engine, [request])
    count = len([event for event in events if isinstance(event, Preview)])
    assert count == (11 if way is Way.ALL else 0)


def test_a_short_run_compares_throughput_with_previews_and_without() -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "bench", "previews", "--way", "all"),
            *("--rounds", "1", "--seconds", "0.5", "--count", "3", "--threads", "1"),
        ],
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr
    way, without, with_previews, ratio, *_, shown, _, dropped = done.stdout.splitlines()[2].split()
    assert way == "all"
    assert float(ratio) == pytest.approx(float(with_previews) / float(without), rel=0.02)
    assert int(shown) + int(dropped) > 0
