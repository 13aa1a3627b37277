from typing import Any

import pytest

from tests.service.fakes import FakeWorker, Served, picture


def put(served: Served, output_format: str = "png", data: bytes | None = None) -> str:
    name = f"{'0a' * 16}-0.{output_format}"
    served.gateway.store.put(name, picture(output_format) if data is None else data)
    return f"/v1/images/{name}"


@pytest.mark.parametrize("output_format", ["png", "jpeg", "webp"])
def test_an_image_comes_with_its_type_and_may_be_kept_for_ever(
    served: Served, output_format: str
) -> None:
    path = put(served, output_format)
    response = served.http.get(path)
    assert response.status_code == 200
    assert response.content == picture(output_format)
    assert response.headers["content-type"] == f"image/{output_format}"
    assert "immutable" in response.headers["cache-control"]
    assert response.headers["x-content-type-options"] == "nosniff"
    name = path.rsplit("/", 1)[1]
    assert response.headers["content-disposition"] == f'inline; filename="{name}"'


def test_head_gives_the_headers_alone(served: Served) -> None:
    path = put(served)
    get, head = served.http.get(path), served.http.head(path)
    assert head.status_code == 200
    assert head.content == b""
    differing = {"date", "x-request-id"}
    assert {k: v for k, v in head.headers.items() if k not in differing} == {
        k: v for k, v in get.headers.items() if k not in differing
    }


@pytest.mark.parametrize("condition", ["{}", "W/{}", '"x", {}', "*"])
def test_an_image_that_the_client_has_is_not_sent_again(served: Served, condition: str) -> None:
    path = put(served)
    etag = served.http.get(path).headers["etag"]
    assert etag.startswith('"')
    given = {"If-None-Match": condition.format(etag)}
    response = served.http.get(path, headers=given)
    assert response.status_code == 304
    assert response.content == b""
    assert response.headers["etag"] == etag
    assert "immutable" in response.headers["cache-control"]


def test_another_image_has_another_etag(served: Served) -> None:
    etag = served.http.get(put(served)).headers["etag"]
    path = put(served, data=picture("png", shade=9))
    response = served.http.get(path, headers={"If-None-Match": etag})
    assert response.status_code == 200
    assert response.headers["etag"] != etag


@pytest.mark.parametrize(
    "name",
    [
        "x",
        f"{'0' * 32}-0.png",
        f"{'0' * 32}-0.gif",
        "..%2F..%2Fetc%2Fpasswd",
        "..%2Fsecret.png",
        "%2Fetc%2Fpasswd",
        "..",
        f".%2F{'0' * 32}-0.png",
        f"{'0' * 32}-0.png%00",
        f"{'0' * 32}-0.png%0A",
    ],
)
def test_no_other_name_leads_anywhere(served: Served, name: str) -> None:
    secret = served.settings.data_dir / "secret.png"
    secret.write_bytes(b"secret")
    response = served.http.get(f"/v1/images/{name}")
    assert response.status_code == 404
    assert response.json()["error"]["code"] in ("image_not_found", "not_found")


def test_images_handed_out_are_counted(served: Served, worker: FakeWorker) -> None:
    def served_as(response_format: str) -> float:
        return served.metric(f'koala_images_served_total{{response_format="{response_format}"}}')

    body: dict[str, Any] = {"prompt": "a koala", "n": 3, "response_format": "b64_json"}
    with worker.working():
        served.http.post("/v1/images/generations", json=body)
    served.http.get(put(served))
    assert (served_as("b64_json"), served_as("url")) == (3, 1)
