"""Load on a running server: closed loops, Poisson arrivals, and one request at a time."""

import asyncio
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, TypeVar

import httpx

from bench.figures import Answer
from bench.workloads import Request

# A server that is silent for so long counts as failed.
_TIMEOUT_SECONDS: Final = 120.0
# After a refusal a client waits, or it would do nothing but ask.
_PAUSE_SECONDS: Final = 0.2
# Between two requests to an idle server: what it still tidies up is not the next one's cost.
_REST_SECONDS: Final = 0.05

_Name = TypeVar("_Name")


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server takes requests."""

    base_url: str
    path: str = "/v1/images/generations"


@dataclass(frozen=True, slots=True)
class Pace:
    """How long a closed loop is looked at for each number of clients, in seconds.

    Before the window opens, the new clients arrive spread over ``settle``, and each should have
    had its first answer. It then stays open for ``window``, or up to ``longest_window`` until there
    were 1.5 answers per client.
    """

    settle: float = 1.0
    window: float = 2.5
    longest_window: float = 4.0

    @property
    def longest_settle(self) -> float:
        """Longest wait for the new clients' first answers."""
        return 3 * self.settle


@dataclass(frozen=True, slots=True)
class Window:
    """A stretch of a run: all answers there are, of which those ended within it count."""

    clients: int
    start: float
    end: float
    answers: list[Answer]

    @property
    def inside(self) -> list[Answer]:
        """The answers that ended within the window."""
        return [a for a in self.answers if a.ended and self.start < a.ended <= self.end]


@dataclass(frozen=True, slots=True)
class OpenRun:
    """Arrivals that began at ``start``. What was unfinished at ``end`` has ``ended`` unset."""

    start: float
    end: float
    answers: list[Answer]


async def closed_loop(
    address: Address, stream: Iterator[Request], levels: Sequence[int], pace: Pace
) -> list[Window]:
    """Clients that each send the next request after the last answer, more of them at each level.

    Args:
        address: The server.
        stream: What to ask for.
        levels: Numbers of clients, ascending.
        pace: How long each level lasts.
    """
    answers: list[Answer] = []
    windows: list[Window] = []
    clients: list[asyncio.Task[None]] = []
    stopping = asyncio.Event()
    async with _http(address) as http:

        async def client(delay: float) -> None:
            await asyncio.sleep(delay)
            while not stopping.is_set():
                answers.append(await _send(http, address, next(stream), time.monotonic()))
                if answers[-1].error is not None:
                    await asyncio.sleep(_PAUSE_SECONDS)

        for level in levels:
            joining = level - len(clients)
            known = len(answers)
            began = time.monotonic()
            clients += [
                asyncio.create_task(client(pace.settle * (i + 0.5) / joining))
                for i in range(joining)
            ]
            await asyncio.sleep(pace.settle)
            await _until(answers, known + level, began + pace.longest_settle)
            start, known = time.monotonic(), len(answers)
            await asyncio.sleep(pace.window)
            await _until(answers, known + level * 3 // 2, start + pace.longest_window)
            windows.append(Window(level, start, time.monotonic(), answers))
        stopping.set()
        await asyncio.gather(*clients)
    return windows


async def open_loop(
    address: Address, stream: Iterator[Request], times: Sequence[float], patience: float
) -> OpenRun:
    """Requests sent at ``times`` (seconds from now, ascending), whatever the server does.

    Answers count until ``patience`` seconds after the last arrival, so a run with an overloaded
    server is bounded; the call returns once the server is idle again.
    """
    async with _http(address) as http:
        start = time.monotonic()

        async def arrive(request: Request, after: float) -> Answer:
            due = start + after
            await asyncio.sleep(due - time.monotonic())
            return await _send(http, address, request, due)

        asked = [(request, after) for after, request in zip(times, stream, strict=False)]
        tasks = [asyncio.create_task(arrive(*each)) for each in asked]
        end = start + (times[-1] if times else 0.0) + patience
        if not tasks:
            return OpenRun(start, end, [])
        done, late = await asyncio.wait(tasks, timeout=end - time.monotonic())
        answers = [
            task.result() if task in done else Answer(request, start + after)
            for task, (request, after) in zip(tasks, asked, strict=True)
        ]
        if late:
            await asyncio.wait(late)
        return OpenRun(start, end, answers)


def one_by_one(
    addresses: Mapping[_Name, Address], stream: Iterator[Request], count: int
) -> dict[_Name, list[float]]:
    """Seconds that each of ``count`` requests takes on idle servers, by server; they take turns.

    Raises:
        httpx.HTTPError: A request failed.
    """
    seconds: dict[_Name, list[float]] = {name: [] for name in addresses}
    with httpx.Client(timeout=_TIMEOUT_SECONDS, trust_env=False) as http:
        for request, _ in zip(stream, range(count), strict=False):
            for name, address in addresses.items():
                start = time.perf_counter()
                url = address.base_url + address.path
                http.post(url, json=request.body()).raise_for_status()
                seconds[name].append(time.perf_counter() - start)
                time.sleep(_REST_SECONDS)
    return seconds


async def _send(http: httpx.AsyncClient, address: Address, request: Request, due: float) -> Answer:
    answer = Answer(request, due)
    try:
        response = await http.post(address.path, json=request.body())
    except httpx.HTTPError as error:
        return replace(answer, ended=time.monotonic(), error=type(error).__name__)
    ended = time.monotonic()
    if response.status_code != 200:
        return replace(answer, ended=ended, error=f"status {response.status_code}")
    body = response.json()
    if not body["data"][0].get("b64_json"):
        return replace(answer, ended=ended, error="no image")
    return replace(answer, ended=ended, queue_wait=_queue_wait(body["timings"], due))


def _queue_wait(timings: dict[str, float], due: float) -> float:
    # Servers without a queue of their own only know when they began; the clock is one for all
    # processes of a machine.
    if "began_monotonic" in timings:
        return max(0.0, timings["began_monotonic"] - due)
    return timings["queued_seconds"]


def _http(address: Address) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        base_url=address.base_url,
        timeout=_TIMEOUT_SECONDS,
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=None),
        trust_env=False,
    )


async def _until(answers: Sequence[Answer], count: int, deadline: float) -> None:
    while len(answers) < count and time.monotonic() < deadline:
        await asyncio.sleep(0.02)
