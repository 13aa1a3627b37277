"""Previews on their way to those who watch."""

import base64
import io
import time
from typing import Any

import pytest
from PIL import Image
from redis.exceptions import ResponseError
from structlog.testing import capture_logs

from koala.spec import Moderation
from koala.store import ImageStore
from tests.worker.rig import FakeEngine, Rig, describe
from worker import showing
from worker.engine import Preview
from worker.gallery import Gallery
from worker.safety import SafetyChecker


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


class BrokenChecker(SafetyChecker):
    """Breaks on previews, which are small."""

    def __init__(self) -> None:
        pass

    def refuses(self, image: Image.Image, moderation: Moderation) -> bool:
        if image.width < 8:
            raise RuntimeError("no")
        return False


@pytest.mark.parametrize("place", ["check", "encoding", "publishing"])
def test_what_goes_wrong_with_a_preview_is_counted_and_logged_once_and_costs_nothing_else(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("no")

    def unwilling(*_: Any) -> Any:
        raise ResponseError("no")

    gallery = Gallery(ImageStore(rig.settings.resolved_image_store), describe)
    if place == "check":
        gallery.safety = BrokenChecker()
    elif place == "encoding":
        monkeypatch.setattr(showing, "_event", broken)
    else:
        monkeypatch.setattr(showing, "publish", unwilling)
    job_id = rig.submit(num_inference_steps=9, previews=3)

    with capture_logs() as lines:
        rig.work(engine=PreviewingEngine(), gallery=gallery)

    assert rig.record(job_id).state == "completed"
    assert "preview" not in rig.told(job_id)
    # A preview that comes after its job's end is not looked at.
    assert 1 <= rig.metrics.previews.labels("failed")._value.get() <= 3
    assert rig.metrics.previews.labels("shown")._value.get() == 0
    complaints = [line for line in lines if line["event"].startswith("a preview cannot be shown")]
    assert len(complaints) == 1


def test_a_preview_that_cannot_be_encoded_takes_no_other_one_with_it(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = showing._event

    def fragile(flight: Any, preview: Preview) -> Any:
        if preview.key.index == 0:
            raise RuntimeError("no")
        return encode(flight, preview)

    monkeypatch.setattr(showing, "_event", fragile)
    job_id = rig.submit(num_inference_steps=9, previews=2, n=2)
    with capture_logs():
        rig.work(engine=PreviewingEngine())
    shown = {event.data["image"] for event in rig.events(job_id) if event.type == "preview"}
    assert shown == {1}
    assert rig.metrics.previews.labels("failed")._value.get() >= 1
