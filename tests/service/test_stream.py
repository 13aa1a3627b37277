"""OpenAI's stream of images, through the unmodified client."""

import base64
import io
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from PIL import Image

from koala.settings import Settings
from tests.service.fakes import FakeWorker, Served, serving, wait_until
from tests.service.test_openai_client import connected
from tests.service.test_waiting import GENERATIONS, in_background
from tests.support import Stack

PARTIAL, COMPLETED = "image_generation.partial_image", "image_generation.completed"


def opened(data: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(data)))


def events(base_url: str, **fields: Any) -> list[Any]:
    with connected(base_url) as client:
        return list(client.images.generate(prompt="a koala", stream=True, **fields))


@pytest.fixture
def quick(settings: Settings) -> Iterator[Served]:
    """A gateway where nobody waits for long."""
    with serving(settings.model_copy(update={"sync_timeout": 0.5})) as served:
        yield served


def test_the_real_service_streams_partial_images_and_the_finished_one(stack: Stack) -> None:
    told = events(
        stack.base_url,
        partial_images=2,
        output_format="webp",
        size="96x64",
        user="me",
        extra_body={"seed": 7},
    )
    assert [event.type for event in told] == [PARTIAL, PARTIAL, COMPLETED]
    assert [event.partial_image_index for event in told[:2]] == [0, 1]
    for event in told:
        assert (event.size, event.quality, event.background) == ("96x64", "medium", "opaque")
        assert event.output_format == "webp"
        assert event.created_at > 1_700_000_000
        with opened(event.b64_json) as image:
            assert (image.format, image.size) == ("WEBP", (96, 64))
    assert told[-1].usage.total_tokens > 0
    assert told[-1].safety_identifier == "me"
    assert told[-1].seed == 7


@pytest.mark.parametrize("partial_images", [None, 0])
def test_without_partial_images_there_is_only_the_end(
    served: Served, worker: FakeWorker, partial_images: int | None
) -> None:
    pending = in_background(events, served.base_url, partial_images=partial_images)
    job_id = worker.take()
    assert worker.spec(job_id).previews == 0
    worker.step(job_id, 3)
    worker.finish(job_id)
    assert [event.type for event in pending.result(120)] == [COMPLETED]


def test_several_images_have_an_end_each_and_partial_ones_of_the_first(
    served: Served, worker: FakeWorker
) -> None:
    pending = in_background(events, served.base_url, n=3, partial_images=1)
    job_id = worker.take()
    for image in range(3):
        worker.preview(job_id, 0, image)
    worker.finish(job_id)
    told = pending.result(120)
    assert [event.type for event in told] == [PARTIAL, COMPLETED, COMPLETED, COMPLETED]
    assert len({event.b64_json for event in told[1:]}) == 3


@pytest.mark.parametrize(("end", "code"), [("fail", "out_of_memory"), ("cancel", "job_cancelled")])
def test_an_error_in_mid_stream_is_the_clients_own_exception(
    served: Served, worker: FakeWorker, end: str, code: str
) -> None:
    pending = in_background(events, served.base_url, partial_images=1)
    getattr(worker, end)(worker.take())
    with pytest.raises(openai.APIError) as caught:
        pending.result(120)
    assert caught.value.code == code


def test_what_is_wrong_with_the_request_is_told_before_the_stream(api: Served) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        events(api.base_url, size="7x7")
    assert caught.value.param == "size"


def test_a_client_that_hangs_up_cancels_its_job(served: Served, worker: FakeWorker) -> None:
    with httpx.stream(
        "POST", served.base_url + GENERATIONS, json={"prompt": "a", "stream": True}, timeout=10
    ) as response:
        # Kept, or the connection would end with it.
        chunks = response.iter_raw()
        assert next(chunks)
        wait_until(lambda: bool(worker.waiting()))
    wait_until(lambda: not worker.waiting())
    wait_until(lambda: served.metric('koala_jobs_abandoned_total{outcome="cancelled"}') == 1)
    [job] = served.http.get("/v1/jobs").json()["data"]
    assert job["status"] == "cancelled"


def test_a_client_that_stays_to_the_end_cancels_nothing(served: Served, worker: FakeWorker) -> None:
    pending = in_background(events, served.base_url)
    worker.finish(worker.take())
    pending.result(120)
    [job] = served.http.get("/v1/jobs").json()["data"]
    assert job["status"] == "completed"
    assert served.metric('koala_jobs_abandoned_total{outcome="over"}') == 0


def test_a_stream_that_takes_too_long_ends_with_an_error_and_the_job_goes_on(
    quick: Served, worker: FakeWorker
) -> None:
    with pytest.raises(openai.APIError) as caught:
        events(quick.base_url)
    assert caught.value.code == "wait_timeout"
    assert len(worker.waiting()) == 1


def test_a_gateway_that_ends_says_so_in_the_stream(served: Served, worker: FakeWorker) -> None:
    pending = in_background(events, served.base_url)
    wait_until(lambda: served.gateway.feeds.listeners == 1)
    served.gateway.dismiss()
    with pytest.raises(openai.APIError) as caught:
        pending.result(120)
    assert caught.value.code == "shutting_down"
    assert len(worker.waiting()) == 1


def test_an_idempotent_stream_can_be_had_again(served: Served, worker: FakeWorker) -> None:
    headers = {"Idempotency-Key": "order 7"}
    first = in_background(events, served.base_url, extra_headers=headers)
    worker.finish(worker.take())
    [end] = first.result(120)
    [again] = events(served.base_url, extra_headers=headers)
    assert again.id == end.id
    assert again.b64_json == end.b64_json
