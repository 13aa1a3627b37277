"""Load on a running server: closed loops of clients, and one request after another."""

import asyncio
import time
from typing import Any, Final

import httpx

REQUEST: Final[dict[str, Any]] = {
    "prompt": "a koala on a blue background",
    "num_inference_steps": 10,
    "guidance_scale": 3.5,
}
_URL: Final = "/v1/images/generations"


async def closed_loop(base_url: str, clients: int, images: int) -> float:
    """Images per second with ``clients`` that each send the next request after the last answer.

    Raises:
        httpx.HTTPStatusError: A request failed.
    """
    seeds = iter(range(images))
    limits = httpx.Limits(max_connections=clients, max_keepalive_connections=clients)
    async with httpx.AsyncClient(base_url=base_url, timeout=300, limits=limits) as http:

        async def client() -> None:
            for seed in seeds:
                response = await http.post(_URL, json={**REQUEST, "seed": seed})
                response.raise_for_status()

        start = time.perf_counter()
        await asyncio.gather(*(client() for _ in range(clients)))
        return images / (time.perf_counter() - start)


def one_by_one(base_url: str, images: int) -> list[float]:
    """Seconds that each of ``images`` requests took, the server idle before each.

    Raises:
        httpx.HTTPStatusError: A request failed.
    """
    seconds = []
    with httpx.Client(base_url=base_url, timeout=300) as http:
        for seed in range(images):
            start = time.perf_counter()
            http.post(_URL, json={**REQUEST, "seed": seed}).raise_for_status()
            seconds.append(time.perf_counter() - start)
            # Idle means idle: what the server still has to tidy up is not the next one's cost.
            time.sleep(0.05)
    return seconds
