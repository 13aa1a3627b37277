"""What a finished job leaves behind, how long, and how much."""

import time
from collections import Counter
from collections.abc import Callable
from threading import Event

from koala.errors import ImageNotFound
from koala.expiry import ExpiringImages
from koala.store import ImageStore
from tests.service.fakes import wait_until
from tests.support import spec
from tests.worker.rig import Rig, describe
from worker.gallery import Gallery

# Events of every step that was told, the result twice (RQ's and the event), the prompt twice.
_MOST_BYTES_PER_JOB = 16_384


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


def test_a_finished_job_takes_little_memory(rig: Rig) -> None:
    count = 20
    for i in range(count):
        rig.submit(prompt="a koala " * 20, seed=i, num_inference_steps=30, owner="somebody")
    rig.work()

    sizes: Counter[str] = Counter()
    for key in rig.redis.scan_iter("*"):
        name = key.decode().split("job_")[0]
        sizes[name] += int(rig.redis.memory_usage(key) or 0)

    per_job = sum(sizes.values()) / count
    assert per_job < _MOST_BYTES_PER_JOB, sizes


def test_rqs_registry_of_cancelled_jobs_is_cleaned_too(rig: Rig) -> None:
    rig.redis.zadd(rig.keys.cancelled, {"gone": 1, "there": time.time() + 60})

    rig.worker()._upkeep.reap()

    assert rig.redis.zrange(rig.keys.cancelled, 0, -1) == [b"there"]
