"""What must be true of a job that has ended, wherever its workers were killed."""

from tests.faults.parts import Parts
from worker.images import read_metadata

TERMINAL = {"completed", "failed", "cancelled"}


def check_completed_once(parts: Parts, job_ids: list[str]) -> None:
    """Each job has completed: one final event, one result, its images once and of its seeds."""
    rig, expected_images = parts.rig, []
    for job_id, record in parts.records(job_ids).items():
        assert record.state == "completed", (job_id, record.state, record.error)
        ends = [event for event in rig.told(job_id) if event in TERMINAL]
        assert ends == ["completed"], (job_id, rig.told(job_id))
        assert rig.redis.xlen(rig.keys.results(job_id)) == 1, job_id
        assert record.result is not None
        spec = record.spec
        assert [image.seed for image in record.result.images] == [
            spec.seed + i for i in range(spec.n)
        ]
        for image in record.result.images:
            parameters = read_metadata(parts.store.get(image.name))["parameters"]
            assert f"Seed: {image.seed}," in parameters
            assert f"Steps: {spec.num_inference_steps}," in parameters
            expected_images.append(image.name)
    stored = set(parts.images)
    assert len(set(expected_images)) == len(expected_images)
    assert stored >= set(expected_images)


def check_nothing_is_left(parts: Parts) -> None:
    """No job is queued, popped, held or running, and no image belongs to no job."""
    rig = parts.rig
    assert rig.leftovers() == []
    ids = [job_id.decode() for job_id in rig.redis.zrange(rig.keys.index, 0, -1)]
    records = parts.records(ids).values()
    assert {record.state for record in records} <= TERMINAL
    known = {image.name for r in records if r.result for image in r.result.images}
    assert set(parts.images) == known
