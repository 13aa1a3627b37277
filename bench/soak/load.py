"""A steady mix of clients: patient, asynchronous, impatient and wrong ones."""

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any, Final

import httpx

# Clients of each kind, and seconds that each rests between two requests. The impatient ones do
# not wait for what they asked for, so only their rest keeps them from piling up jobs.
_PATIENT: Final = (4, 0.2)
_ASYNCHRONOUS: Final = (2, 0.2)
_IMPATIENT: Final = (1, 5.0)
_WRONG: Final = (1, 0.5)

# How long an impatient client waits for what takes longer.
_PATIENCE: Final = 0.3
_PATH: Final = "/v1/images/generations"

_WRONG_BODIES: Final[list[Any]] = [
    {},
    [],
    {"prompt": ""},
    {"prompt": "a", "n": 99},
    {"prompt": "a", "size": "1x1"},
    {"prompt": "a", "nonsense": True},
    {"prompt": "a" * 5000},
]


class Load:
    """Clients that go on until they are stopped; ``outcomes`` counts what became of requests."""

    def __init__(self, base_url: str, seed: int) -> None:
        self.outcomes: Counter[str] = Counter()
        self._base_url = base_url
        self._draw = random.Random(seed)
        self._stopping = False

    def stop(self) -> None:
        """Let each client end with its request."""
        self._stopping = True

    async def run(self) -> None:
        """All clients, until they are stopped.

        Raises:
            httpx.HTTPError: The gateway is out of reach.
        """
        kinds: list[tuple[tuple[int, float], Callable[[httpx.AsyncClient], Awaitable[None]]]] = [
            (_PATIENT, self._wait),
            (_ASYNCHRONOUS, self._follow),
            (_IMPATIENT, self._hang_up),
            (_WRONG, self._err),
        ]
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=20)
        async with httpx.AsyncClient(
            base_url=self._base_url, timeout=120, limits=limits, trust_env=False
        ) as http:

            async def repeat(
                act: Callable[[httpx.AsyncClient], Awaitable[None]], rest: float
            ) -> None:
                while not self._stopping:
                    await act(http)
                    await asyncio.sleep(rest)

            await asyncio.gather(
                *(repeat(act, rest) for (count, rest), act in kinds for _ in range(count))
            )

    def _request(self) -> dict[str, Any]:
        draw = self._draw
        return {
            "prompt": draw.choice(["a koala", "a banana on a white background", "a rocket"]),
            "n": draw.choice([1, 1, 2]),
            "num_inference_steps": draw.randint(4, 12),
            "size": draw.choice(["64x64", "64x64", "96x64"]),
            "output_format": draw.choice(["png", "jpeg", "webp"]),
            "response_format": draw.choice(["url", "b64_json"]),
        }

    async def _wait(self, http: httpx.AsyncClient) -> None:
        response = await http.post(_PATH, json=self._request())
        self._count("waited", response)
        if response.is_success:
            for image in response.json()["data"]:
                if "url" in image:
                    self._count("fetched", await http.get(image["url"]))

    async def _follow(self, http: httpx.AsyncClient) -> None:
        response = await http.post(_PATH, json=self._request(), headers={"Prefer": "respond-async"})
        self._count("submitted", response)
        while response.is_success and response.json()["status"] in ("queued", "in_progress"):
            address = f"/v1/jobs/{response.json()['id']}"
            response = await http.get(address, params={"wait": 10})
        self._count("followed", response)

    async def _hang_up(self, http: httpx.AsyncClient) -> None:
        request = self._request() | {"num_inference_steps": 50, "n": 2}
        try:
            response = await http.post(_PATH, json=request, timeout=_PATIENCE)
        except httpx.ReadTimeout:
            self.outcomes["hung up"] += 1
        else:
            self._count("waited", response)

    async def _err(self, http: httpx.AsyncClient) -> None:
        self._count("wrong body", await http.post(_PATH, json=self._draw.choice(_WRONG_BODIES)))
        self._count("wrong job", await http.get(f"/v1/jobs/job_{self._draw.randbytes(16).hex()}"))
        for path in ("/v1/jobs", "/readyz", "/metrics"):
            self._count(path, await http.get(path))

    def _count(self, what: str, response: httpx.Response) -> None:
        self.outcomes[f"{what}: {response.status_code}"] += 1
