"""What a generation request may ask for: all else is an error that names the field."""

from typing import Any

import pytest

from koala.spec import MAX_SEED
from tests.service.fakes import FakeWorker, Served

GENERATIONS = "/v1/images/generations"
ASYNC = {"Prefer": "respond-async"}


def refusal(api: Served, body: Any) -> dict[str, Any]:
    response = api.http.post(GENERATIONS, json=body, headers=ASYNC)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    return dict(error)


def accepted(api: Served, **fields: Any) -> dict[str, Any]:
    response = api.http.post(GENERATIONS, json={"prompt": "a koala"} | fields, headers=ASYNC)
    assert response.status_code == 202, response.text
    return dict(response.json())


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("prompt", None, "string"),
        ("prompt", 3, "string"),
        ("prompt", "", "empty"),
        ("prompt", " \n\t", "empty"),
        ("prompt", "k" * 4001, "at most 4000"),
        ("prompt", "a\x00b", "control characters"),
        ("negative_prompt", 3, "string"),
        ("negative_prompt", "k" * 4001, "at most 4000"),
        ("negative_prompt", "\x1b[0m", "control characters"),
        ("model", 3, "string"),
        ("n", 0, "1 to 10"),
        ("n", 11, "1 to 10"),
        ("n", True, "1 to 10"),
        ("n", "3", "1 to 10"),
        ("n", 3.5, "1 to 10"),
        ("size", "64", "WIDTHxHEIGHT"),
        ("size", "64x64x64", "WIDTHxHEIGHT"),
        ("size", "64x64\n", "WIDTHxHEIGHT"),
        ("size", "6٤x64", "WIDTHxHEIGHT"),
        ("size", 64, "WIDTHxHEIGHT"),
        ("size", "1024x1024", "from 48 to 128"),
        ("size", "72x64", "multiples of 16"),
        ("size", "0x0", "from 48 to 128"),
        ("quality", "best", "'medium'"),
        ("response_format", "png", "'b64_json'"),
        ("output_format", "gif", "'webp'"),
        ("output_format", "svg", "'webp'"),
        ("output_compression", -1, "0 to 100"),
        ("output_compression", 101, "0 to 100"),
        ("output_compression", 80, "png"),
        ("background", "transparent", "opaque"),
        ("background", "green", "'opaque'"),
        ("moderation", "none", "'low'"),
        ("stream", "false", "true or false"),
        ("partial_images", 1, "streaming"),
        ("previews", 21, "0 to 20"),
        ("partial_images", 4, "0 to 3"),
        ("style", "vivid", "not supported"),
        ("user", 7, "string"),
        ("user", "u" * 513, "512"),
        ("safety_identifier", ["a"], "string"),
        ("seed", -1, "0 to 9007199254740991"),
        ("seed", MAX_SEED + 1, "0 to 9007199254740991"),
        ("seed", 1.5, "whole number"),
        ("num_inference_steps", 0, "1 to 150"),
        ("num_inference_steps", 151, "1 to 150"),
        ("num_inference_steps", True, "whole number"),
        ("guidance_scale", -0.1, "0 to 30"),
        ("guidance_scale", 30.5, "0 to 30"),
        ("guidance_scale", "7", "number"),
        ("guidance_scale", True, "number"),
        ("scheduler", 3, "string"),
        ("scheduler", "", "one of euler, euler_a, "),
        ("scheduler", "best", "one of euler, euler_a, "),
        ("scheduler", "k" * 99_999, "one of euler, euler_a, "),
    ],
)
def test_a_value_that_cannot_be_honoured_is_refused_by_name(
    api: Served, field: str, value: Any, says: str
) -> None:
    error = refusal(api, {"prompt": "a koala"} | {field: value})
    assert error["param"] == field
    assert f"`{field}`" in error["message"]
    assert says in error["message"]


@pytest.mark.parametrize(
    "field", ["complexity", "frame_count", "frame_duration_ms", "svg", "width", "steps", "Prompt"]
)
def test_an_unknown_field_is_refused_by_name(api: Served, field: str) -> None:
    error = refusal(api, {"prompt": "a koala", field: None})
    assert (error["param"], error["code"]) == (field, "unknown_field")


def test_a_misspelt_field_is_answered_with_the_right_one(api: Served) -> None:
    error = refusal(api, {"prompt": "a koala", "guidance": 3})
    assert "did you mean `guidance_scale`?" in error["message"]


def test_a_missing_prompt_is_named(api: Served) -> None:
    assert refusal(api, {"n": 1}) | {"message": ""} == {
        "message": "",
        "type": "invalid_request_error",
        "param": "prompt",
        "code": "missing_field",
    }


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_guidance_must_be_finite(api: Served, number: str) -> None:
    body = f'{{"prompt": "a koala", "guidance_scale": {number}}}'
    headers = ASYNC | {"Content-Type": "application/json"}
    response = api.http.post(GENERATIONS, content=body, headers=headers)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "guidance_scale"


@pytest.mark.parametrize("field", ["prompt", "negative_prompt", "user", "model"])
def test_lone_surrogates_are_refused(api: Served, field: str) -> None:
    body = f'{{"prompt": "a", "{field}": "a\\udc80b"}}'
    headers = ASYNC | {"Content-Type": "application/json"}
    response = api.http.post(GENERATIONS, content=body, headers=headers)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == field


def test_a_field_name_with_a_lone_surrogate_is_refused(api: Served) -> None:
    headers = ASYNC | {"Content-Type": "application/json"}
    response = api.http.post(GENERATIONS, content='{"prompt": "a", "\\ud800": 1}', headers=headers)
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "unknown_field"


def test_quality_and_steps_exclude_each_other(api: Served) -> None:
    error = refusal(api, {"prompt": "a", "quality": "high", "num_inference_steps": 5})
    assert error["param"] == "quality"
    assert "`num_inference_steps`" in error["message"]
    assert accepted(api, quality="auto", num_inference_steps=5)["num_inference_steps"] == 5


def test_a_scheduler_is_asked_for_no_more_steps_than_it_has(api: Served) -> None:
    body = {"prompt": "a", "scheduler": "LCM"}
    error = refusal(api, body | {"num_inference_steps": 51})
    assert error["param"] == "scheduler"
    assert "`scheduler` lcm draws in at most 50 steps, not 51" in error["message"]
    assert accepted(api, **body, num_inference_steps=50)["scheduler"] == "lcm"
    assert accepted(api, num_inference_steps=51)["scheduler"] is None


def test_other_tools_names_for_a_scheduler_become_ours(api: Served) -> None:
    for name in ("DPM++ 2M Karras", "dpmpp_2m_karras", "dpm++_2m_karras"):
        assert accepted(api, scheduler=name)["scheduler"] == "dpm++_2m_karras"


def test_the_seed_of_the_last_image_counts_too(api: Served) -> None:
    assert accepted(api, seed=MAX_SEED)["seed"] == MAX_SEED
    assert accepted(api, seed=MAX_SEED - 1, n=2)["seed"] == MAX_SEED - 1
    error = refusal(api, {"prompt": "a", "seed": MAX_SEED, "n": 2})
    assert error["param"] == "seed"
    assert str(MAX_SEED - 1) in error["message"]


def test_another_model_is_not_found(api: Served) -> None:
    response = api.http.post(GENERATIONS, json={"prompt": "a", "model": "dall-e-3"})
    assert response.status_code == 404
    error = response.json()["error"]
    assert (error["param"], error["code"]) == ("model", "model_not_found")


@pytest.mark.parametrize(
    ("quality", "named", "steps"),
    [
        (None, "medium", 10),
        ("auto", "medium", 10),
        ("standard", "medium", 10),
        ("low", "low", 6),
        ("medium", "medium", 10),
        ("high", "high", 16),
        ("hd", "high", 16),
        ("xhigh", "xhigh", 20),
        ("max", "max", 30),
    ],
)
def test_quality_stands_for_steps(api: Served, quality: str | None, named: str, steps: int) -> None:
    job = accepted(api, quality=quality)
    assert (job["quality"], job["num_inference_steps"]) == (named, steps)


@pytest.mark.parametrize(("steps", "named"), [(1, "low"), (10, "medium"), (150, "max")])
def test_steps_are_reported_as_the_nearest_quality(api: Served, steps: int, named: str) -> None:
    assert accepted(api, num_inference_steps=steps)["quality"] == named


def test_a_whole_number_may_be_written_with_a_point(api: Served) -> None:
    job = accepted(api, n=2.0, seed=7.0, num_inference_steps=4.0)
    assert (job["n"], job["seed"], job["num_inference_steps"]) == (2, 7, 4)


def test_null_means_the_default(api: Served) -> None:
    optional = (
        "model n size quality response_format output_format output_compression background "
        "moderation stream partial_images style user safety_identifier negative_prompt seed "
        "num_inference_steps guidance_scale scheduler previews priority deadline_seconds"
    )
    job = accepted(api, **dict.fromkeys(optional.split()))
    wanted = {
        "model": "koala-demo",
        "n": 1,
        "size": "64x64",
        "output_format": "png",
        "output_compression": 100,
        "response_format": "url",
        "num_inference_steps": 10,
        "guidance_scale": 3.5,
        "negative_prompt": None,
        "scheduler": None,
    }
    assert job | wanted == job
    assert "safety_identifier" not in job


def test_everything_that_is_asked_for_reaches_the_job(api: Served) -> None:
    wanted = {
        "prompt": "一只考拉 🐨\r\n\twith tabs",
        "negative_prompt": "rain",
        "model": "koala-demo",
        "n": 10,
        "size": "96x64",
        "response_format": "b64_json",
        "output_format": "webp",
        "output_compression": 0,
        "seed": 5,
        "num_inference_steps": 7,
        "guidance_scale": 1.5,
        "scheduler": "euler_a",
    }
    harmless = {"background": "opaque", "moderation": "low", "stream": False}
    job = accepted(api, **wanted, **harmless)
    assert job | wanted == job


def test_random_seeds_differ(api: Served) -> None:
    assert len({accepted(api)["seed"] for _ in range(5)}) == 5


@pytest.mark.parametrize(
    ("user", "safety_identifier", "effective"),
    [("u", None, "u"), ("u", "", "u"), ("u", "s", "s"), (None, "s", "s"), ("", "", None)],
)
def test_the_safety_identifier_wins_over_user(
    api: Served, user: str | None, safety_identifier: str | None, effective: str | None
) -> None:
    job = accepted(api, user=user, safety_identifier=safety_identifier)
    assert job.get("safety_identifier") == effective


@pytest.mark.parametrize("scale", [0, 0.5, 1])
def test_a_negative_prompt_that_could_do_nothing_is_refused(api: Served, scale: float) -> None:
    body = {"prompt": "a", "negative_prompt": "b", "guidance_scale": scale}
    error = refusal(api, body)
    assert error["param"] == "negative_prompt"
    assert "above 1" in error["message"]
    assert accepted(api, negative_prompt="", guidance_scale=scale)["guidance_scale"] == scale


@pytest.mark.parametrize(("asked", "used"), [(None, "auto"), ("auto", "auto"), ("low", "low")])
def test_the_worker_hears_how_strict_the_safety_check_is_to_be(
    served: Served, worker: FakeWorker, asked: str | None, used: str
) -> None:
    job = accepted(served, moderation=asked)
    assert worker.spec(job["id"]).moderation == used
