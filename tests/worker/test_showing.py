"""Previews on their way to those who watch."""

import base64
import io
import time
from typing import Any

import pytest
from PIL import Image

from tests.worker.rig import FakeEngine, Rig
from worker import showing
from worker.engine import Preview


class PreviewingEngine(FakeEngine):
    """Shows a grey square after each step that a preview is wanted of.

    No worker draws faster than that: each preview is looked at before the next.
    """

    def __init__(self) -> None:
        super().__init__()
        self.before_step = lambda number: time.sleep(0.02)

    def step(self) -> list[Any]:
        requests = {key: request for key, (request, _) in self._samples.items()}
        events = super().step()
        previews = [
            Preview(event.key, event.step, Image.new("RGB", (4, 2), "grey"))
            for event in events
            if getattr(event, "step", 0) in requests[event.key].preview_steps
        ]
        return events + previews


def test_previews_are_published_with_what_is_needed_to_show_them(rig: Rig) -> None:
    job_id = rig.submit(num_inference_steps=9, previews=2, n=2)
    quiet = rig.submit(num_inference_steps=9)

    engine = PreviewingEngine()
    rig.work(engine=engine)

    shown = [event.data for event in rig.events(job_id) if event.type == "preview"]
    assert [(data["image"], data["preview"], data["step"]) for data in shown] == [
        (0, 0, 3),
        (1, 0, 3),
        (0, 1, 6),
        (1, 1, 6),
    ]
    for data in shown:
        assert (data["steps"], data["width"], data["height"]) == (9, 4, 2)
        with Image.open(io.BytesIO(base64.b64decode(data["b64_json"]))) as image:
            assert (image.format, image.size) == ("JPEG", (4, 2))
        assert data["media_type"] == "image/jpeg"
    assert engine.preview_seconds > 0
    assert "preview" not in rig.told(quiet)
    assert rig.metrics.previews.labels("shown")._value.get() == 4


def test_previews_are_left_out_when_showing_them_lags_behind(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(showing, "_MOST_PENDING", 0)
    job_id = rig.submit(num_inference_steps=9, previews=3)

    rig.work(engine=PreviewingEngine())

    assert rig.record(job_id).state == "completed"
    assert "preview" not in rig.told(job_id)
    assert rig.metrics.previews.labels("dropped")._value.get() == 3
