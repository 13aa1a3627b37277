"""The safety check through the whole service, with a classifier that calls red backgrounds nsfw."""

import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from PIL import Image

from tests.classifiers import save_classifier
from tests.support import Stack, free_port, running
from worker.safety import SafetyChecker

RED = "a koala on a red background"
BLUE = "a koala on a blue background"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The classifier."""
    return save_classifier(tmp_path_factory.mktemp("classifier"), unsafe="UNSAFE")


@pytest.fixture(scope="module")
def metrics_port() -> int:
    """Where the worker tells of itself."""
    return free_port()


@pytest.fixture(scope="module")
def checked(
    folder: Path, metrics_port: int, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stack]:
    """The service with the check."""
    env = {"KOALA_SAFETY_CHECKER": str(folder), "KOALA_METRICS_PORT": str(metrics_port)}
    with running(tmp_path_factory.mktemp("checked-stack"), **env) as stack:
        yield stack


def client(stack: Stack) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{stack.base_url}/v1", api_key="none")


def test_a_refused_image_is_openais_error_which_its_client_does_not_retry(
    checked: Stack, metrics_port: int
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client(checked).images.generate(prompt=RED, extra_body={"seed": 7})
    assert caught.value.code == "content_policy_violation"
    assert caught.value.type == "invalid_request_error"
    assert caught.value.response.headers["x-should-retry"] == "false"
    job = httpx.get(f"{checked.base_url}{caught.value.response.headers['Location']}").json()
    assert (job["status"], job["error"]["code"]) == ("failed", "content_policy_violation")
    lines = httpx.get(f"http://127.0.0.1:{metrics_port}/metrics").text.splitlines()
    assert "koala_images_blocked_total 1.0" in lines
    assert not list((checked.settings.data_dir / "images").glob("*.png"))


def test_an_image_that_passes_comes_as_ever(checked: Stack) -> None:
    answer = client(checked).images.generate(prompt=BLUE, extra_body={"seed": 7})
    assert answer.data is not None and answer.data[0].url is not None
    assert httpx.get(answer.data[0].url).is_success


def test_a_stream_of_a_refused_image_ends_in_the_error(checked: Stack) -> None:
    stream = client(checked).images.generate(prompt=RED, stream=True, extra_body={"seed": 7})
    with pytest.raises(openai.APIError) as caught:
        list(stream)
    assert caught.value.code == "content_policy_violation"


@pytest.mark.parametrize(("prompt", "status"), [(RED, "failed"), (BLUE, "completed")])
def test_no_preview_is_shown_that_is_refused(
    checked: Stack, folder: Path, prompt: str, status: str
) -> None:
    checker = SafetyChecker.load(folder)
    events = follow(checked, {"prompt": prompt, "seed": 7, "previews": 9})
    previews = [data for name, data in events if name == "preview"]
    assert events[-1][0] == status
    for data in previews:
        picture = Image.open(io.BytesIO(base64.b64decode(data["b64_json"]))).convert("RGB")
        # The file has lost a little of what was looked at.
        assert not checker.refuses(picture, "low")
    # How early a refused picture can be seen in previews is a matter of their quality.
    assert len(previews) >= 5 if status == "completed" else len(previews) < 9, len(previews)


def follow(stack: Stack, body: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """The events of a job, from its submission to its end."""
    answer = httpx.post(
        f"{stack.base_url}/v1/images/generations", json=body, headers={"Prefer": "respond-async"}
    )
    job_id = answer.json()["id"]
    events, name = [], ""
    with httpx.stream("GET", f"{stack.base_url}/v1/jobs/{job_id}/events", timeout=240) as response:
        for line in response.iter_lines():
            if line.startswith("event: "):
                name = line.removeprefix("event: ")
            elif line.startswith("data: "):
                events.append((name, json.loads(line.removeprefix("data: "))))
    return events
