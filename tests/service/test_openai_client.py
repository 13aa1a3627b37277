"""The unmodified ``openai`` client: results, our own fields, errors as its own exceptions."""

import asyncio
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
from tests.support import Stack


@pytest.fixture
def client(served: Served) -> Iterator[openai.OpenAI]:
    with connected(served.base_url) as openai_client:
        yield openai_client


def connected(base_url: str, **options: Any) -> openai.OpenAI:
    return openai.OpenAI(
        base_url=f"{base_url}/v1", api_key="unused", **{"max_retries": 0} | options
    )


def opened(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def test_it_gets_real_images_as_urls(stack: Stack) -> None:
    with connected(stack.base_url) as client:
        response = client.images.generate(
            prompt="a koala on a blue background",
            n=2,
            size="96x64",
            quality="low",
            output_format="jpeg",
            output_compression=90,
            background="opaque",
            moderation="low",
            user="me",
            extra_body={
                "seed": 7,
                "guidance_scale": 2.5,
                "negative_prompt": "rain",
                "scheduler": "Euler a",
            },
        )
    assert response.data is not None
    for image in response.data:
        assert image.url is not None
        assert image.b64_json is None
        picture = opened(httpx.get(image.url).content)
        assert (picture.format, picture.size) == ("JPEG", (96, 64))
    assert (response.size, response.quality) == ("96x64", "low")
    assert (response.output_format, response.background) == ("jpeg", "opaque")
    assert response.usage is not None
    assert response.usage.total_tokens == response.usage.input_tokens > 0
    extra = response.model_extra
    assert extra is not None
    assert (extra["seed"], extra["num_inference_steps"], extra["guidance_scale"]) == (7, 6, 2.5)
    assert extra["scheduler"] == "euler_a"
    assert response.safety_identifier == "me"


def test_it_gets_real_images_as_base64_and_a_seed_gives_the_same_one_again(stack: Stack) -> None:
    def generate(client: openai.OpenAI, seed: int) -> bytes:
        response = client.images.generate(
            prompt="a banana",
            model="koala-demo",
            response_format="b64_json",
            extra_body={"seed": seed, "num_inference_steps": 4},
        )
        assert response.data is not None
        [image] = response.data
        assert image.url is None
        assert image.b64_json is not None
        return opened(base64.b64decode(image.b64_json)).tobytes()

    with connected(stack.base_url) as client:
        assert generate(client, 1) == generate(client, 1) != generate(client, 2)


def test_the_asynchronous_client_runs_requests_side_by_side(stack: Stack) -> None:
    async def main() -> list[int]:
        async with openai.AsyncOpenAI(base_url=f"{stack.base_url}/v1", api_key="unused") as client:
            responses = await asyncio.gather(
                *(client.images.generate(prompt="a star", extra_body={"seed": i}) for i in range(5))
            )
        return [response.model_extra["seed"] for response in responses if response.model_extra]

    assert asyncio.run(main()) == list(range(5))


def test_it_lists_and_retrieves_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["koala-demo"]
    assert client.models.retrieve("koala-demo").owned_by == "koala-serve"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("some/other")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 11}, "n"),
        ({"size": "1024x1024"}, "size"),
        ({"prompt": ""}, "prompt"),
        ({"partial_images": 2}, "partial_images"),
        ({"stream": True, "partial_images": 4}, "partial_images"),
        ({"stream": True, "extra_body": {"previews": 2}}, "previews"),
        ({"background": "transparent"}, "background"),
        ({"extra_body": {"frame_count": 3}}, "frame_count"),
        ({"extra_body": {"scheduler": "best"}}, "scheduler"),
    ],
)
def test_what_cannot_be_honoured_is_a_bad_request_with_its_param(
    client: openai.OpenAI, fields: dict[str, Any], param: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.images.generate(**{"prompt": "a koala"} | fields)
    assert caught.value.param == param
    assert caught.value.code
    assert caught.value.type == "invalid_request_error"
    assert caught.value.request_id == caught.value.response.headers["x-request-id"]
    assert f"`{param}`" in caught.value.message


def test_an_unknown_model_is_its_not_found_error(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.images.generate(prompt="a koala", model="gpt-image-1")
    assert (caught.value.param, caught.value.code) == ("model", "model_not_found")


def test_a_full_queue_is_its_rate_limit_error(settings: Settings) -> None:
    with (
        serving(settings.model_copy(update={"max_queued": 1})) as served,
        connected(served.base_url) as client,
    ):
        later = {"Prefer": "respond-async"}
        client.images.generate(prompt="a", extra_headers=later)
        with pytest.raises(openai.RateLimitError) as caught:
            client.images.generate(prompt="a", extra_headers=later)
        assert caught.value.code == "queue_full"


def test_a_failed_job_is_its_server_error_and_is_not_tried_again(
    served: Served, worker: FakeWorker
) -> None:
    async def main() -> None:
        async with openai.AsyncOpenAI(
            base_url=f"{served.base_url}/v1", api_key="unused", max_retries=2
        ) as client:
            pending = asyncio.create_task(client.images.generate(prompt="a koala"))
            await asyncio.to_thread(lambda: worker.fail(worker.take()))
            with pytest.raises(openai.InternalServerError) as caught:
                await pending
        assert caught.value.code == "out_of_memory"

    asyncio.run(main())
    assert worker.waiting() == []


def test_a_timeout_is_its_server_error_and_is_not_tried_again(
    settings: Settings, worker: FakeWorker
) -> None:
    with (
        serving(settings.model_copy(update={"sync_timeout": 0.2})) as served,
        connected(served.base_url, max_retries=2) as client,
    ):
        with pytest.raises(openai.InternalServerError) as caught:
            client.images.generate(prompt="a koala")
        assert (caught.value.status_code, caught.value.code) == (504, "wait_timeout")
        assert len(worker.waiting()) == 1


def test_an_unreachable_queue_is_its_server_error(tmp_path: Any) -> None:
    with (
        serving(Settings(redis_url=f"unix://{tmp_path}/none.sock", data_dir=tmp_path)) as served,
        connected(served.base_url) as client,
        pytest.raises(openai.InternalServerError) as caught,
    ):
        client.images.generate(prompt="a koala")
    assert (caught.value.status_code, caught.value.code) == (503, "queue_unavailable")


def test_its_own_timeout_leaves_no_waiter_behind(served: Served) -> None:
    with (
        connected(served.base_url, timeout=0.3) as client,
        pytest.raises(openai.APITimeoutError),
    ):
        client.images.generate(prompt="a koala")
    wait_until(lambda: served.gateway.hub.watched == 0)
