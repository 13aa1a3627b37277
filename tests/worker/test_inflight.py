"""Jobs in flight: how they join, advance and end, and what RQ shows meanwhile."""

import time

import pytest
from rq import Queue, Worker
from rq.job import JobStatus
from rq.serializers import JSONSerializer

from koala.spec import ImageRef
from koala.store import ImageStore
from tests.support import spec
from tests.worker.rig import Rig
from worker import herald, inflight


def test_a_job_completes_and_tells_of_every_step(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(herald, "PACE_SECONDS", 0.0)
    job_id = rig.submit(num_inference_steps=3)

    rig.work()

    events = rig.events(job_id)
    assert [(event.type, event.data) for event in events[:-1]] == [
        ("queued", {}),
        ("admitted", {"worker": "worker-1"}),
        ("step", {"step": 1, "steps": 3, "image_steps": [1]}),
        ("step", {"step": 2, "steps": 3, "image_steps": [2]}),
        ("step", {"step": 3, "steps": 3, "image_steps": [3]}),
    ]
    assert events[-1].type == "completed"
    record = rig.record(job_id)
    assert record.state == "completed"
    assert record.worker == "worker-1"
    assert record.attempts == 0
    assert record.result is not None
    assert events[-1].data == {"result": record.result.model_dump(mode="json")}
    assert record.expires_at is not None
    assert rig.leftovers() == []


def test_steps_that_follow_faster_than_anybody_looks_are_told_together(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(herald, "PACE_SECONDS", 3600.0)
    job_id = rig.submit(num_inference_steps=5)

    rig.work()

    told = [event.data for event in rig.events(job_id) if event.type == "step"]
    assert told == [{"step": 1, "steps": 5, "image_steps": [1]}]
    assert rig.told(job_id) == ["queued", "admitted", "completed"]


def test_the_result_names_each_image_with_its_seed_and_size(rig: Rig) -> None:
    request = spec(n=3, seed=40, output_format="webp")
    job_id = rig.submit_spec(request)

    rig.work()

    result = rig.record(job_id).result
    assert result is not None
    store = ImageStore(rig.settings.resolved_image_store)
    assert result.images == [
        ImageRef(
            name=request.image_name(i),
            seed=40 + i,
            size_bytes=len(store.get(request.image_name(i))),
        )
        for i in range(3)
    ]
    assert rig.engine.seeds == [40, 41, 42]
    assert result.usage.text_tokens == 2
    assert result.warnings == []


def test_a_prompt_longer_than_the_model_reads_is_a_warning(rig: Rig) -> None:
    job_id = rig.submit(prompt="word " * 80, negative_prompt="word " * 75)

    rig.work()

    result = rig.record(job_id).result
    assert result is not None
    assert result.warnings == ["The prompt has 80 tokens; the model reads the first 75."]
    assert result.usage.text_tokens == 155


def test_jobs_join_and_leave_between_two_steps(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inflight, "_POLL_SECONDS", 0.0)
    first = rig.submit(num_inference_steps=5)
    late: list[str] = []

    def submit_another(number: int) -> None:
        if number == 2:
            late.append(rig.submit(num_inference_steps=2))

    rig.engine.before_step = submit_another

    rig.work()

    assert rig.engine.company == [{first}, {first}, {first, *late}, {first, *late}, {first}]
    assert rig.told(first) == rig.told(late[0]) == ["queued", "admitted", "completed"]


def test_a_job_that_may_have_killed_its_workers_runs_alone(rig: Rig) -> None:
    before = [rig.submit(num_inference_steps=4) for _ in range(2)]
    suspect = rig.submit()
    after = rig.submit()
    rig.redis.hset(rig.keys.job(suspect), "koala_attempts", rig.settings.max_attempts - 1)

    rig.work()

    assert set(before) in rig.engine.company
    assert [company for company in rig.engine.company if suspect in company] == [{suspect}] * 10
    assert {rig.record(job_id).state for job_id in [*before, suspect, after]} == {"completed"}
    told = ["queued", "admitted", "requeued", "admitted", "completed"]
    assert rig.told(suspect) == told
    assert rig.events(suspect)[2].data["reason"] == "runs_alone"
    assert rig.record(suspect).attempts == rig.settings.max_attempts - 1
    assert rig.leftovers() == []


def test_a_first_death_alone_makes_no_job_run_alone(rig: Rig) -> None:
    jobs = {rig.submit(), rig.submit()}
    for job_id in jobs:
        rig.redis.hset(rig.keys.job(job_id), "koala_attempts", 1)

    rig.work()

    assert rig.engine.company == [jobs] * 10


def test_rq_shows_the_truth_while_jobs_are_in_flight(rig: Rig) -> None:
    ids = [rig.submit() for _ in range(2)]
    seen = {}

    def look(number: int) -> None:
        if number != 4:
            return
        queue = Queue(rig.settings.queue, connection=rig.redis, serializer=JSONSerializer)
        [worker] = Worker.all(connection=rig.redis)
        seen.update(
            started=queue.started_job_registry.count,
            ids=set(queue.started_job_registry.get_job_ids()),
            waiting=queue.count,
            statuses=[rig.job(job_id).get_status() for job_id in ids],
            state=worker.get_state(),
            executions={execution.job_id for execution in worker.get_current_executions()},
        )

    rig.engine.before_step = look

    rig.work()

    assert seen == {
        "started": 2,
        "ids": set(ids),
        "waiting": 0,
        "statuses": [JobStatus.STARTED] * 2,
        "state": "busy",
        "executions": set(ids),
    }
    queue = Queue(rig.settings.queue, connection=rig.redis, serializer=JSONSerializer)
    assert queue.finished_job_registry.count == 2
    assert queue.started_job_registry.count == 0


def test_no_more_jobs_are_taken_than_the_engine_can_use(rig: Rig) -> None:
    rig.engine.max_rows = 4
    ids = [rig.submit(num_inference_steps=2, guidance_scale=3.0) for _ in range(5)]

    rig.work()

    assert rig.engine.company == [
        *[{ids[0], ids[1]}] * 2,
        *[{ids[2], ids[3]}] * 2,
        *[{ids[4]}] * 2,
    ]


def test_the_worker_advertises_itself_until_it_is_gone(rig: Rig) -> None:
    rig.submit()
    seen = {}
    rig.engine.before_step = lambda number: seen.update(rig.redis.hgetall(rig.keys.workers))

    rig.work()

    assert list(seen) == [b"worker-1"]
    assert b'"model":"koala-demo"' in seen[b"worker-1"]
    assert rig.redis.hgetall(rig.keys.workers) == {}


def test_metrics_count_what_was_done(rig: Rig) -> None:
    rig.submit(n=2)
    rig.submit(prompt="broken")

    rig.work()

    value = rig.metrics.registry.get_sample_value
    assert value("koala_images_total", {"format": "png"}) == 2
    finished = "koala_jobs_finished_total"
    assert value(finished, {"status": "finished", "code": ""}) == 1
    assert value(finished, {"status": "failed", "code": "generation_failed"}) == 1
    assert value("koala_jobs_running") == 0
    assert value("koala_queue_wait_seconds_count") == 2
    assert value("koala_job_seconds_count") == 1
    assert value("koala_job_latency_seconds_count") == 1
    # Two images of ten steps; the broken one failed in its second.
    assert value("koala_steps_total") == 21


def test_tokens_beyond_what_the_model_reads_are_counted(rig: Rig) -> None:
    rig.submit(prompt="koala " * 80, negative_prompt="blur " * 76)
    rig.submit(prompt="a koala")

    rig.work()

    value = rig.metrics.registry.get_sample_value
    assert value("koala_prompt_tokens_total") == 80 + 76 + 2
    assert value("koala_prompt_tokens_truncated_total") == 5 + 1


def test_how_long_storing_takes_does_not_depend_on_what_the_loop_does_meanwhile(rig: Rig) -> None:
    short, long = rig.submit(num_inference_steps=1), rig.submit(num_inference_steps=60)
    seen = []

    def draw(number: int) -> None:
        time.sleep(0.02)
        if not seen and rig.record(short).state == "completed":
            # The loop notices only after this step.
            seen.append(number)
            time.sleep(2.0)

    worker = rig.worker()
    rig.engine.before_step = draw

    worker.work(burst=True)

    assert seen
    assert rig.record(long).state == "completed"
    assert 0 < worker._rates.store_seconds < 0.5
