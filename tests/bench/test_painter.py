"""diffusers' pipeline behind the peers: a batch of unlike requests is drawn right."""

import base64
import io
from itertools import islice

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from bench.locked_server import create_app
from bench.painter import Painter
from bench.workloads import Request, Workload, requests


@pytest.fixture(scope="module")
def painter() -> Painter:
    return Painter(threads=1)


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB"), dtype=int)


def test_unlike_requests_of_a_batch_are_drawn_as_each_alone(painter: Painter) -> None:
    batch = [
        Request("a koala on a blue background", 1, 5, 3.5),
        Request("a banana on a red background", 2, 4, 0.0),
        Request("a rocket on a white background", 3, 5, 3.5),
        Request("a koala on a pink background", 4, 5, 7.0),
        Request("a koala on a black background", 5, 4, 1.0),
    ]
    paintings = painter.paint(batch)

    assert [painting.request for painting in paintings] == batch
    for request, painting in zip(batch, paintings, strict=True):
        [alone] = painter.paint([request])
        assert np.abs(pixels(painting.image) - pixels(alone.image)).max() <= 1, request
    # Those that share a call began together.
    assert paintings[0].began == paintings[2].began
    assert paintings[1].began == paintings[4].began
    assert len({painting.began for painting in paintings}) == 3


def test_the_locked_server_answers_as_ours_does(painter: Painter) -> None:
    request = next(islice(requests(Workload.MIXED, 0), 1, None))
    with TestClient(create_app(painter)) as client:
        response = client.post("/v1/images/generations", json=request.body())

    body = response.json()
    with Image.open(io.BytesIO(base64.b64decode(body["data"][0]["b64_json"]))) as image:
        assert image.format == "PNG"
        assert image.size == (64, 64)
        assert f"Steps: {request.num_inference_steps}" in image.info["parameters"]
    assert body["timings"]["began_monotonic"] > 0
