"""Traffic that leaves something in every panel: images, a queue, refusals, failures."""

import itertools
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, Final

import httpx

_SIZES: Final = ("64x64", "96x64", "64x64")
# So many clients at once give the batch something to fill.
_CLIENTS: Final = 6


def requests() -> Iterator[dict[str, Any]]:
    """Generation requests for the demo model, without end."""
    for i in itertools.count():
        yield {
            "prompt": "a koala on a blue background",
            "size": _SIZES[i % len(_SIZES)],
            "num_inference_steps": 6 + i % 3 * 6,
            "n": 1 + i % 2,
            "seed": i,
            "response_format": ("b64_json", "url")[i % 2],
        }


def send(base_url: str, seconds: float, rounds: int = 0) -> None:
    """Let clients ask for ``seconds``, and for ``rounds`` requests each at the least.

    Some of what they ask for does not exist, cannot be done, or is cancelled. A server that goes
    away meanwhile ends nothing.
    """
    stream, lock = requests(), threading.Lock()
    ends = time.monotonic() + seconds

    def client() -> None:
        with httpx.Client(base_url=base_url, timeout=60, trust_env=False) as http:
            done = 0
            while time.monotonic() < ends or done < rounds:
                with lock:
                    request = next(stream)
                with suppress(httpx.HTTPError):
                    _ask(http, request)
                done += 1

    with ThreadPoolExecutor(_CLIENTS) as pool:
        for future in [pool.submit(client) for _ in range(_CLIENTS)]:
            future.result()


def _ask(http: httpx.Client, request: dict[str, Any]) -> None:
    path, number = "/v1/images/generations", request["seed"]
    answer = http.post(path, json=request)
    if answer.is_success:
        for image in answer.json()["data"]:
            if "url" in image:
                http.get(image["url"])
    if number % 7 == 0:
        http.post(path, json={"prompt": "a koala", "size": "1x1"})
        http.get("/v1/jobs/job_of_nobody")
    if number % 7 == 3:
        job = http.post(path, json=request, headers={"Prefer": "respond-async"}).json()
        http.post(f"/v1/jobs/{job['id']}/cancel")
    if number % 11 == 5:
        http.post(path, json=request | {"deadline_seconds": 0.001})
