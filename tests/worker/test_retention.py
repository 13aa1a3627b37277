"""What a finished job leaves behind, how long, and how much."""

import random
import string
import time
from collections import Counter
from collections.abc import Callable
from threading import Event
from typing import Any

import pytest

from koala.errors import ImageNotFound
from koala.events import EventType, JobEvent, publish
from koala.expiry import ExpiringImages
from koala.store import ImageStore
from tests.service.fakes import wait_until
from tests.support import spec
from tests.worker.rig import Rig, describe
from worker.gallery import Gallery

# Events of every step that was told, the result twice (RQ's and the event), the prompt twice.
_MOST_BYTES_PER_JOB = 16_384
# Of two prompts of 4,000 characters that do not compress, as text and in JSON's escapes.
_MOST_BYTES_OF_LONG_PROMPTS = 36_864


def expiry(rig: Rig) -> dict[bytes, float]:
    return dict(rig.redis.zrange(rig.keys.images, 0, -1, withscores=True))


def test_images_of_a_completed_job_expire_with_it(rig: Rig) -> None:
    job = spec(n=2)
    job_id = rig.submit_spec(job)

    rig.work()

    [(member, score)] = expiry(rig).items()
    assert ExpiringImages.decode(member).names == [job.image_name(0), job.image_name(1)]
    ends = time.time() + rig.redis.ttl(rig.keys.job(job_id))
    assert abs(score - ends) < 3
    assert abs(score - time.time() - rig.settings.result_ttl) < 5


def test_images_of_a_job_that_failed_in_the_middle_may_go_at_once(rig: Rig) -> None:
    job = spec(prompt="broken", n=2)
    rig.submit_spec(job)

    rig.work()

    [(member, score)] = expiry(rig).items()
    assert ExpiringImages.decode(member) == ExpiringImages.of(job)
    assert score <= time.time()


class FirstFailsSecondIsLate(ImageStore):
    """Refuses the first image of a job, and is done with the second when the job has ended."""

    def __init__(self, url: str, has_ended: Callable[[], bool]) -> None:
        super().__init__(url)
        self._has_ended = has_ended
        self.is_stored = Event()

    def put(self, name: str, data: bytes) -> None:
        if "-0." in name:
            raise OSError("full")
        wait_until(self._has_ended)
        super().put(name, data)
        self.is_stored.set()


def test_an_image_that_is_stored_after_its_job_failed_is_removed(rig: Rig) -> None:
    job = spec(n=2)
    job_id = rig.submit_spec(job)
    store = FirstFailsSecondIsLate(
        rig.settings.resolved_image_store, lambda: bool(rig.redis.zcard(rig.keys.images))
    )

    rig.work(gallery=Gallery(store, describe))

    assert rig.record(job_id).state == "failed"
    assert store.is_stored.wait(10)

    def is_gone() -> bool:
        try:
            store.get(job.image_name(1))
        except ImageNotFound:
            return True
        return False

    wait_until(is_gone)


def test_everything_about_a_finished_job_expires_but_the_lists_that_are_swept(rig: Rig) -> None:
    rig.settings = rig.settings.model_copy(update={"result_ttl": 100, "job_timeout": 50})
    for owner in ("", "somebody"):
        rig.submit(owner=owner, deadline=time.time() + 60)
    rig.work()

    lasting = {key.decode() for key in rig.redis.scan_iter("*") if rig.redis.ttl(key) == -1}

    keys = rig.keys
    assert lasting <= {
        # RQ's own, of bounded size or cleaned by its maintenance.
        "rq:queues",
        "rq:finished:koala",
        # Ours: cleaned by the reaper, by the sweep of images, by the next admission.
        keys.index,
        keys.images,
        keys.fairness,
        keys.workers,
    }


def long_text(alphabet: str) -> str:
    """As long a prompt as is allowed, of which nothing can be compressed away."""
    return "".join(random.Random(0).choices(alphabet, k=4000))


LATIN = string.ascii_letters + " "
CHINESE = "".join(map(chr, range(0x4E00, 0x9FA5)))
KINDS: dict[str, dict[str, Any]] = {
    "usual": {"prompt": "a koala " * 20, "num_inference_steps": 30, "owner": "somebody"},
    "long prompts": {"prompt": long_text(LATIN), "negative_prompt": long_text(LATIN[::-1])},
    "long Chinese prompts": {
        "prompt": long_text(CHINESE),
        "negative_prompt": long_text(CHINESE[::-1]),
    },
    "ten images": {"n": 10, "num_inference_steps": 150},
    "previews": {"n": 10, "previews": 20, "num_inference_steps": 150},
    "webhook": {"webhook_url": "https://example.com/" + "x" * 480, "base_url": "https://a.bc"},
    "LoRAs": {"lora": [{"name": "x" * 100, "weight": 0.5 + i} for i in range(4)]},
    "failed": {"prompt": "broken"},
    "cancelled": {"prompt": "cancelled", "num_inference_steps": 50},
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_finished_job_takes_little_memory(rig: Rig, kind: str) -> None:
    count = 5
    jobs = [rig.submit(**KINDS[kind] | {"seed": i}) for i in range(count)]
    for job_id in jobs:
        if kind == "cancelled":
            rig.cancel(job_id)
        if kind == "previews":
            show_previews(rig, job_id, 64, 4000)
    rig.work()
    end_of_showing(rig, *jobs)
    rig.worker()._upkeep.reap()

    sizes: Counter[str] = Counter()
    for key in rig.redis.scan_iter("*"):
        name = key.decode().split("job_")[0]
        sizes[name] += int(rig.redis.memory_usage(key, samples=0) or 0)

    per_job = sum(sizes.values()) / count
    most = _MOST_BYTES_OF_LONG_PROMPTS if kind.startswith("long") else _MOST_BYTES_PER_JOB
    assert per_job < most, sizes


def show_previews(rig: Rig, job_id: str, count: int, size: int) -> None:
    data = {"image": 0, "preview": 0, "steps": 10, "b64_json": "x" * size}
    with rig.redis.pipeline() as pipeline:
        for _ in range(count):
            publish(pipeline, rig.keys, job_id, JobEvent(EventType.PREVIEW, data), 600)
        pipeline.zadd(rig.keys.previews, {job_id: 0}, nx=True)
        pipeline.execute()


def end_of_showing(rig: Rig, *jobs: str) -> None:
    """Let it be a minute since what was last told of jobs."""
    for job_id in jobs:
        key, entries = rig.keys.events(job_id), rig.redis.xrange(rig.keys.events(job_id))
        rig.redis.delete(key)
        for i, (_, fields) in enumerate(entries, start=1):
            rig.redis.xadd(key, fields, id=f"1-{i}")
        rig.redis.expire(key, 600)
    rig.redis.zadd(rig.keys.previews, dict.fromkeys(jobs, 1), xx=True)


def test_previews_are_forgotten_a_minute_after_the_end_and_nothing_else(rig: Rig) -> None:
    ended, running = rig.submit(), rig.submit()
    rig.work()
    claimed = rig.submit()
    for job_id in (ended, running, claimed):
        show_previews(rig, job_id, 3, 100)

    rig.worker()._upkeep.reap()
    assert rig.told(ended).count("preview") == 3, "it has just ended"

    before = [event for event in rig.events(ended) if event.type is not EventType.PREVIEW]
    end_of_showing(rig, ended, claimed)
    rig.worker()._upkeep.reap()

    left = rig.events(ended)
    assert [(e.type, e.data) for e in left] == [(e.type, e.data) for e in before]
    assert 0 < rig.redis.ttl(rig.keys.events(ended)) <= 600
    assert rig.told(claimed).count("preview") == 3, "it has not ended"
    assert rig.told(running).count("preview") == 3, "it has just ended"
    due = [job_id.decode() for job_id in rig.redis.zrange(rig.keys.previews, 0, -1)]
    assert sorted(due) == sorted([running, claimed])


def test_rqs_registry_of_cancelled_jobs_is_cleaned_too(rig: Rig) -> None:
    rig.redis.zadd(rig.keys.cancelled, {"gone": 1, "there": time.time() + 60})

    rig.worker()._upkeep.reap()

    assert rig.redis.zrange(rig.keys.cancelled, 0, -1) == [b"there"]
