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


@pytest.mark.parametrize(("way", "side"), [(Way.DECODER, 64), (Way.MAP, 32)])
def test_previews_are_drawn_in_the_way_asked_for(
    pipeline: ResidentPipeline, way: Way, side: int
) -> None:
    steps = frozenset(range(1, 60))
    request = sample("a", width=64, height=64, num_inference_steps=60, preview_steps=steps)
    with drawing(way):
        events = run(Engine(pipeline, max_rows=2), [request])
    sizes = [event.image.size for event in events if isinstance(event, Preview)]
    assert sizes == [(side, side)] * 59


def test_a_short_run_compares_throughput_with_previews_and_without() -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "bench", "previews", "--way", "map"),
            *("--rounds", "1", "--seconds", "0.5", "--count", "3", "--threads", "1"),
        ],
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    way, without, with_previews, ratio, *_, shown, _, dropped = done.stdout.splitlines()[2].split()
    assert way == "map"
    assert float(ratio) == pytest.approx(float(with_previews) / float(without), rel=0.02)
    assert int(shown) + int(dropped) > 0
