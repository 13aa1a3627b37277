"""Parts that are asked to end, while clients wait: nobody loses anything."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import httpx
import pytest
from httpx_sse import ServerSentEvent, connect_sse

from tests.faults.accounts import check_completed_once, check_nothing_is_left
from tests.faults.parts import Parts, eventually, parts


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Parts]:
    with parts(tmp_path_factory.mktemp("leaving"), worker_count=2, drain_seconds=1) as running:
        yield running


def test_a_worker_that_is_stopped_under_load_finishes_or_hands_back_and_exits_cleanly(
    service: Parts,
) -> None:
    # The long ones cannot be finished within the drain.
    long = [service.admit(prompt="a", num_inference_steps=60, n=3, seed=i) for i in range(8)]
    short = [service.admit(prompt="a", num_inference_steps=4, seed=i) for i in range(40)]
    eventually(lambda: len({service.rig.record(job_id).worker for job_id in long} - {None}) == 2)
    leaver = service.workers[0]

    assert service.stop_worker(leaver) == 0

    # Now, because a stream keeps the latest events only.
    reasons = {
        event.data["reason"]
        for j in long
        for event in service.rig.events(j)
        if event.type == "requeued"
    }
    assert reasons == {"drained"}
    service.start_worker()
    jobs = [*long, *short]
    eventually(lambda: service.have_completed(jobs))
    check_completed_once(service, jobs)
    check_nothing_is_left(service)
    assert {service.rig.record(job_id).attempts for job_id in jobs} == {0}
    service.wait_until_ready(2)


def test_no_request_fails_while_both_workers_are_replaced_one_after_the_other(
    service: Parts,
) -> None:
    stop = Event()
    answers: list[tuple[int, str]] = []

    def send_one_after_the_other(client: int) -> None:
        with httpx.Client(timeout=300, trust_env=False) as http:
            while not stop.is_set():
                body = {"prompt": "a koala", "num_inference_steps": 6, "n": 1 + client % 2}
                response = http.post(service.generations, json=body)
                answers.append((response.status_code, response.text))

    with ThreadPoolExecutor(6) as clients:
        running = [clients.submit(send_one_after_the_other, i) for i in range(6)]
        try:
            for worker in list(service.workers):
                before = len(answers)
                eventually(lambda before=before: len(answers) > before + 6)
                assert service.stop_worker(worker) == 0
                service.wait_until_started(service.start_worker())
            before = len(answers)
            eventually(lambda: len(answers) > before + 6)
        finally:
            stop.set()
    for each in running:
        each.result()

    assert len(answers) > 18
    assert [text for status, text in answers if status != 200] == []


def test_clients_of_a_stopped_gateway_are_told_where_their_jobs_are(service: Parts) -> None:
    body = {"prompt": "a", "num_inference_steps": 40, "n": 3, "guidance_scale": 5}
    with ThreadPoolExecutor(8) as pool:
        pending = [
            pool.submit(httpx.post, service.generations, json=body, timeout=300, trust_env=False)
            for _ in range(8)
        ]
        # All have been admitted, and they are too much for the drain.
        eventually(lambda: _waiting(service) == 8)
        code = service.stop_gateway()
        answers = [each.result(300) for each in pending]

    assert code == 0
    told = [answer for answer in answers if answer.status_code != 200]
    assert told, "the jobs were too short for this test"
    for answer in told:
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "shutting_down"
        assert answer.headers["x-should-retry"] == "false"
    service.start_gateway()
    jobs = [answer.headers["x-koala-job-id"] for answer in answers]
    assert len(set(jobs)) == 8
    eventually(lambda: service.have_completed(jobs))
    check_completed_once(service, jobs)


def test_streams_of_a_stopped_gateway_end_in_words_and_their_jobs_go_on(service: Parts) -> None:
    body = {"prompt": "a", "num_inference_steps": 150, "n": 10}
    watched = _Stream(service, "GET", f"/v1/jobs/{service.admit(**body)}/events")
    streamed = _Stream(service, "POST", "/v1/images/generations", {**body, "stream": True})
    with ThreadPoolExecutor(2) as pool:
        reading = [pool.submit(stream.read) for stream in (watched, streamed)]
        eventually(lambda: watched.job_id and streamed.job_id and "step" in watched.kinds)
        code = service.stop_gateway()
        for each in reading:
            each.result(300)

    assert code == 0
    assert watched.events[-1].event == "shutdown"
    assert watched.events[-1].json() == {"type": "shutdown", "job_id": watched.job_id}
    [told] = streamed.events
    assert told.event == "error"
    assert told.json()["error"]["code"] == "shutting_down"
    assert streamed.job_id in told.json()["error"]["message"]

    service.start_gateway()
    last_id = watched.events[-2].id
    resumed = _Stream(service, "GET", f"/v1/jobs/{watched.job_id}/events", last_event_id=last_id)
    with ThreadPoolExecutor(1) as pool:
        reading = [pool.submit(resumed.read)]
        eventually(lambda: "step" in resumed.kinds)
        for job_id in (watched.job_id, streamed.job_id):
            assert service.http.post(f"/v1/jobs/{job_id}/cancel").json()["status"] == "cancelled"
        reading[0].result(300)
    assert "queued" not in resumed.kinds
    assert resumed.kinds[-1] == "cancelled"


class _Stream:
    """A client's connection for events, and what came on it."""

    def __init__(
        self,
        service: Parts,
        method: str,
        path: str,
        body: object = None,
        last_event_id: str = "",
    ) -> None:
        self._request = (method, service.base_url + path)
        self._body = body
        self._headers = {"Last-Event-ID": last_event_id} if last_event_id else {}
        self.events: list[ServerSentEvent] = []
        self.job_id = ""

    @property
    def kinds(self) -> list[str]:
        """The types of all events so far."""
        return [event.event for event in self.events]

    def read(self) -> None:
        """Read up to the end, which must be a proper one."""
        with (
            httpx.Client(timeout=300, trust_env=False) as http,
            connect_sse(http, *self._request, json=self._body, headers=self._headers) as source,
        ):
            self.job_id = source.response.headers.get("x-koala-job-id", "")
            for event in source.iter_sse():
                if event.data:
                    self.events.append(event)
                    self.job_id = self.job_id or event.json()["job_id"]


def _waiting(service: Parts) -> int:
    text = service.http.get("/metrics").text
    [line] = [x for x in text.splitlines() if x.startswith("koala_waiting_clients ")]
    return int(float(line.split()[1]))
