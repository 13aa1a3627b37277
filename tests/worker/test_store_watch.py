"""A worker whose image store cannot be used leaves the jobs where they are."""

import threading
from pathlib import Path

import pytest

from koala.store import ImageStore
from koala.workers import WorkerAd
from tests.faults.parts import eventually
from tests.worker.rig import Rig, describe
from worker import store_watch
from worker.gallery import Gallery


@pytest.fixture(autouse=True)
def is_impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests need not wait as long as a store is to be spared."""
    monkeypatch.setattr(store_watch, "_PROBE_SECONDS", 0.05)


def troubles(rig: Rig) -> list[str | None]:
    """What the workers say is wrong with them."""
    return [
        WorkerAd.model_validate_json(raw).trouble
        for raw in rig.redis.hgetall(rig.keys.workers).values()
    ]


def test_jobs_wait_until_the_store_can_be_used(rig: Rig) -> None:
    store = Path(rig.settings.resolved_image_store)
    store.write_text("no folder")
    gallery = Gallery(ImageStore(str(store)), describe)
    gallery.store_watch.begin()
    job_id = rig.submit()
    working = threading.Thread(target=lambda: rig.work(gallery=gallery))
    working.start()
    eventually(lambda: "nothing can be written" in str(troubles(rig)))
    assert rig.engine.steps_taken == 0
    assert rig.record(job_id).state == "queued"
    store.unlink()
    working.join(60)
    record = rig.record(job_id)
    assert (record.state, record.attempts) == ("completed", 0)


def test_after_an_image_that_was_not_stored_no_job_is_claimed_until_a_probe_goes_well(
    rig: Rig,
) -> None:
    store = Path(rig.settings.resolved_image_store)
    store.write_text("no folder")
    gallery = Gallery(ImageStore(str(store)), describe)
    first = rig.submit()
    working = threading.Thread(target=lambda: rig.work(gallery=gallery))
    # It was not known before.
    assert gallery.store_watch.trouble is None
    working.start()
    eventually(lambda: rig.record(first).state == "failed")
    second = rig.submit()
    eventually(lambda: "nothing can be written" in str(gallery.store_watch.trouble))
    assert rig.record(second).state == "queued"
    store.unlink()
    working.join(60)
    assert rig.record(second).state == "completed"
