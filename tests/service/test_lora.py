"""The field `lora`: what it takes, and what names the fault where it cannot be honoured."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from koala.settings import Settings
from service.gateway import BadSetting, Gateway
from tests.service.fakes import FakeWorker, Served, serving

GENERATIONS = "/v1/images/generations"


@pytest.fixture(scope="module")
def loras(valkey_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A gateway with two LoRAs, of which it only reads the headers, and one that is none."""
    folder = tmp_path_factory.mktemp("loras")
    header = b'{"unet.a.lora_A.weight": {"dtype": "F16", "shape": [0], "data_offsets": [0, 0]}}'
    for name in ("watercolour", "slider"):
        content = len(header).to_bytes(8, "little") + header
        (folder / f"{name}.safetensors").write_bytes(content)
    (folder / "spoilt.safetensors").write_bytes(b"not at all")
    settings = Settings(redis_url=valkey_server, data_dir=folder, queue="loras", lora_dir=folder)
    with serving(settings) as served:
        yield served


def post(served: Served, lora: Any, waits: bool = False) -> Any:
    headers = {} if waits else {"Prefer": "respond-async"}
    return served.http.post(GENERATIONS, json={"prompt": "a koala", "lora": lora}, headers=headers)


@pytest.mark.parametrize(
    ("lora", "param", "says"),
    [
        ("watercolour", "lora", "list"),
        ([{"name": "watercolour"}] * 5, "lora", "at most 4"),
        (["watercolour"], "lora.0", "valid"),
        ([{"weight": 1}], "lora.0.name", "required"),
        ([{"name": 7}], "lora.0.name", "string"),
        ([{"name": "a\x00"}], "lora.0.name", "control characters"),
        ([{"name": "slider"}, {"name": "watercolor"}], "lora.1.name", "near it: 'watercolour'"),
        ([{"name": "../slider"}], "lora.0.name", "there is no LoRA"),
        ([{"name": "slider", "weight": 10.5}], "lora.0.weight", "from -10 to 10"),
        ([{"name": "slider", "weight": "1"}], "lora.0.weight", "from -10 to 10"),
        ([{"name": "slider", "scale": 1}], "lora.0.scale", "not a field"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(
    loras: Served, lora: Any, param: str, says: str
) -> None:
    response = post(loras, lora)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["param"] == param
    assert f"`{param}`" in error["message"] and says in error["message"]


def test_a_file_that_is_no_lora_is_refused_at_once(loras: Served) -> None:
    response = post(loras, [{"name": "slider"}, {"name": "spoilt"}])
    assert response.status_code == 400
    error = response.json()["error"]
    assert (error["code"], error["param"]) == ("lora_unusable", "lora.1.name")
    assert error["type"] == "invalid_request_error"
    assert response.headers["x-should-retry"] == "false"
    assert error["message"] == (
        "`lora.1.name`: The LoRA 'spoilt' cannot be used: it is no safetensors file."
    )


def test_a_job_that_fails_by_a_lora_is_answered_like_a_request_that_names_a_bad_one(
    loras: Served,
) -> None:
    fake = FakeWorker(loras.settings)
    message = "The LoRA 'watercolour' cannot be used: it is for another model"
    with ThreadPoolExecutor(1) as pool:
        lora = [{"name": "slider"}, {"name": "watercolour"}]
        answer = pool.submit(post, loras, lora, waits=True)
        fake.fail(fake.take(), "lora_unusable", message)
        response = answer.result()
    fake.redis.close()
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (400, "lora_unusable")
    assert (error["param"], error["message"]) == ("lora.1.name", message)
    assert response.headers["x-should-retry"] == "false"
    job = loras.http.get(f"/v1/jobs/{response.headers['x-koala-job-id']}").json()
    assert (job["status"], job["error"]["code"]) == ("failed", "lora_unusable")


@pytest.mark.parametrize("lora", [None, []])
def test_none_is_none(loras: Served, lora: Any) -> None:
    response = post(loras, lora)
    assert response.status_code == 202
    assert response.json()["lora"] == []


def test_what_is_asked_for_is_in_the_job(loras: Served) -> None:
    response = post(loras, [{"name": "slider", "weight": -2}, {"name": "watercolour"}])
    assert response.status_code == 202, response.text
    used = [{"name": "slider", "weight": -2.0}, {"name": "watercolour", "weight": 1.0}]
    assert response.json()["lora"] == used
    again = loras.http.get(f"/v1/jobs/{response.json()['id']}").json()
    assert again["lora"] == used


def test_models_and_the_openapi_document_name_the_loras(loras: Served) -> None:
    [model] = loras.http.get("/v1/models").json()["data"]
    assert model["capabilities"]["loras"] == ["slider", "spoilt", "watercolour"]
    schemas = loras.http.get("/openapi.json").json()["components"]["schemas"]
    assert schemas["LoraRequest"]["properties"]["name"]["enum"] == [
        "slider",
        "spoilt",
        "watercolour",
    ]


def test_a_server_without_loras_says_so(api: Served) -> None:
    error = post(api, [{"name": "watercolour"}]).json()["error"]
    assert (error["param"], error["code"]) == ("lora", "invalid_value")
    assert "this server has no LoRAs" in error["message"]
    schemas = api.http.get("/openapi.json").json()["components"]["schemas"]
    field = schemas["GenerationRequest"]["properties"]["lora"]
    assert {"type": "array", "maxItems": 0} in field["anyOf"]


def test_a_folder_that_is_not_there_stops_the_gateway(settings: Settings) -> None:
    nowhere = settings.data_dir / "nowhere"
    with pytest.raises(BadSetting, match="KOALA_LORA_DIR: there is no folder"):
        Gateway.build(settings.model_copy(update={"lora_dir": nowhere}))
