"""How far ETAs were from the truth is a metric."""

import time

from tests.service.fakes import FakeWorker, Served, wait_until
from tests.service.test_jobs import one_at_a_time, submit

METRIC = 'koala_eta_error_ratio_{part}{{came="{came}"}}'


def told(served: Served, part: str, came: str) -> float:
    for line in served.http.get("/metrics").text.splitlines():
        name, _, value = line.rpartition(" ")
        if name == METRIC.format(part=part, came=came):
            return float(value)
    raise AssertionError(f"no {part} of {came}")


def test_the_error_of_an_eta_is_observed_when_the_job_is_completed(
    served: Served, worker: FakeWorker
) -> None:
    # Ten steps of 0.3 s are foretold.
    worker.advertise(sizes=[one_at_a_time(0.3)])
    submit(served)
    job_id = worker.take()
    time.sleep(1.2)
    worker.finish(job_id)
    wait_until(lambda: told(served, "count", "sooner") == 1)
    took = 3 / (1 + told(served, "sum", "sooner"))
    assert 1.2 <= took < 2.9
    assert told(served, "count", "later") == 0


def test_jobs_that_fail_or_last_no_second_say_nothing_of_etas(
    served: Served, worker: FakeWorker
) -> None:
    worker.advertise(sizes=[one_at_a_time(0.3)])
    submit(served)
    worker.finish(worker.take())
    submit(served)
    failing = worker.take()
    time.sleep(1.1)
    worker.fail(failing)
    submit(served)
    last = worker.take()
    time.sleep(1.1)
    worker.finish(last)
    wait_until(lambda: told(served, "count", "sooner") == 1)
    assert told(served, "count", "later") == 0
