"""Clients that are slow or say nothing: each is given some time, and none locks out the others."""

import json
import os
import resource
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from koala.descriptors import raise_descriptor_limit
from koala.events import EventType, JobEvent
from koala.settings import Settings
from service.connections import RESERVE, Connections
from service.metrics import Metrics
from tests.service.fakes import FakeWorker, Served, serving, wait_until
from tests.service.sockets import connect, drip, parse, read_all, read_until
from tests.service.test_run import alive, command
from tests.support import free_port

GENERATIONS = "/v1/images/generations"
SHORT = {
    "new_connection_seconds": 0.3,
    "header_seconds": 0.3,
    "body_seconds": 0.3,
    "unread_seconds": 0.3,
    "keep_alive_seconds": 1,
}


@pytest.fixture(scope="module", params=["uvloop", "asyncio"])
def hasty(
    request: pytest.FixtureRequest, valkey_server: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    """A gateway that has little patience, on either event loop."""
    settings = Settings(
        redis_url=valkey_server, data_dir=tmp_path_factory.mktemp("hasty"), queue="hasty"
    )
    with serving(settings.model_copy(update=SHORT), loop=request.param) as served:
        yield served


def closed(served: Served, reason: str) -> float:
    return served.metric(f'koala_http_connections_closed_total{{reason="{reason}"}}')


def test_a_new_connection_that_says_nothing_is_closed(hasty: Served) -> None:
    before = closed(hasty, "new")
    with connect(hasty) as connection:
        assert read_all(connection) == b""
    assert closed(hasty, "new") == before + 1


def test_headers_that_come_bit_by_bit_are_a_408(hasty: Served) -> None:
    before = closed(hasty, "headers")
    with connect(hasty) as connection:
        answer = parse(drip(connection, b"GET /healthz HTTP/1.1\r\nX: " + b"a" * 1000))
    assert answer.status == 408
    assert answer.error["code"] == "request_timeout"
    assert answer.headers["connection"] == "close"
    assert closed(hasty, "headers") == before + 1


def test_headers_of_a_second_request_have_to_come_in_time_too(hasty: Served) -> None:
    with connect(hasty) as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert connection.recv(65_536).startswith(b"HTTP/1.1 200")
        answer = parse(drip(connection, b"GET /healthz HTTP/1.1\r\nX: " + b"a" * 1000))
    assert answer.status == 408


def test_a_body_that_comes_bit_by_bit_is_a_408(hasty: Served) -> None:
    with connect(hasty) as connection:
        connection.sendall(head_of_post(GENERATIONS, 1000))
        answer = parse(drip(connection, b" " * 1000))
    assert answer.status == 408
    assert answer.error["code"] == "request_timeout"
    assert answer.headers["x-request-id"]
    assert answer.headers["connection"] == "close"


def test_each_kib_of_a_body_lengthens_its_time(hasty: Served) -> None:
    with connect(hasty) as connection:
        connection.sendall(head_of_post(GENERATIONS, 100_000) + b" " * 512)
        answer = parse(read_all(connection))
    assert answer.status == 408
    assert "within 0.8 seconds" in answer.error["message"]


def test_what_follows_an_early_answer_bit_by_bit_is_not_read_for_ever(hasty: Served) -> None:
    before = closed(hasty, "body")
    with connect(hasty) as connection:
        connection.sendall(head_of_post("/nothing", 1000))
        assert parse(drip(connection, b" " * 1000)).status == 404
    assert closed(hasty, "body") == before + 1


def test_a_connection_is_kept_alive_for_some_time_only(hasty: Served) -> None:
    with connect(hasty) as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        answer = parse(read_all(connection))
    assert answer.status == 200


def test_a_connection_whose_body_came_after_its_answer_is_kept_alive_no_longer(
    hasty: Served,
) -> None:
    with connect(hasty) as connection:
        connection.sendall(head_of_post("/nothing", 10) + b"early")
        assert read_until(connection, b"}}").startswith(b"HTTP/1.1 404")
        connection.sendall(b" late")
        assert read_all(connection) == b""


def test_an_image_that_is_not_read_is_cut_off(hasty: Served) -> None:
    name, before = f"{'0b' * 16}-0.png", closed(hasty, "unread")
    hasty.gateway.store.put(name, os.urandom(20_000_000))
    with connect(hasty, receive_buffer=4096) as connection:
        connection.sendall(f"GET /v1/images/{name} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        wait_until(lambda: closed(hasty, "unread") == before + 1)
        assert len(read_to_the_cut(connection)) < 20_000_000


def test_an_image_that_is_read_comes_whole(hasty: Served) -> None:
    name = f"{'0c' * 16}-0.png"
    image = os.urandom(20_000_000)
    hasty.gateway.store.put(name, image)
    assert hasty.http.get(f"/v1/images/{name}").content == image


LARGE_PREVIEW = {
    "image": 0,
    "preview": 0,
    "step": 1,
    "steps": 10,
    "image_steps": [1],
    "media_type": "image/jpeg",
    "width": 8,
    "height": 8,
    "b64_json": "x" * 1_000_000,
}


def test_an_event_stream_that_is_not_read_is_cut_off(hasty: Served) -> None:
    worker = FakeWorker(hasty.settings)
    before = closed(hasty, "unread")
    job_id = submit(hasty)
    with connect(hasty, receive_buffer=4096) as connection:
        connection.sendall(
            f"GET /v1/jobs/{job_id}/events HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
        )
        for _ in range(20):
            worker.tell(job_id, JobEvent(EventType.PREVIEW, LARGE_PREVIEW))
        wait_until(lambda: closed(hasty, "unread") == before + 1)
        read_to_the_cut(connection)
    worker.finish(worker.take())
    worker.redis.close()


def test_a_waiting_call_may_wait_longer_than_any_of_these_limits(hasty: Served) -> None:
    worker = FakeWorker(hasty.settings)
    with connect(hasty) as waiting, connect(hasty) as silent:
        body = b'{"prompt": "a koala"}'
        waiting.sendall(head_of_post(GENERATIONS, len(body)) + body)
        job_id = worker.take()
        # A client that connects later and is closed for it has used up the longest of the limits.
        silent.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        read_all(silent)
        worker.finish(job_id)
        assert waiting.recv(65_536).startswith(b"HTTP/1.1 200")
    worker.redis.close()


def test_silent_connections_make_room_for_others(settings: Settings, worker: FakeWorker) -> None:
    with serving(settings.model_copy(update={"max_connections": 20})) as served, ExitStack() as all:
        waiting = all.enter_context(connect(served))
        body = b'{"prompt": "a koala"}'
        waiting.sendall(head_of_post(GENERATIONS, len(body)) + body)
        job_id = worker.take()
        stream = all.enter_context(connect(served))
        stream.sendall(
            f"GET /v1/jobs/{job_id}/events HTTP/1.1\r\nHost: x.localhost\r\n\r\n".encode()
        )
        assert stream.recv(65_536).startswith(b"HTTP/1.1 200")
        crowd = [all.enter_context(connect(served)) for _ in range(60)]
        assert served.http.get("/healthz").is_success
        assert served.metric("koala_http_connections") <= 20
        assert closed(served, "limit") >= 40
        assert [read_all(connection) for connection in crowd[:40]] == [b""] * 40
        # Those at work were not closed.
        worker.finish(job_id)
        assert waiting.recv(65_536).startswith(b"HTTP/1.1 200")
        assert b"event: completed" in read_until(stream, b"event: completed")


def test_where_all_connections_are_busy_health_checks_are_answered(
    settings: Settings, worker: FakeWorker
) -> None:
    with serving(settings.model_copy(update={"max_connections": 2})) as served, ExitStack() as all:
        job_id = submit(served)
        wait = f"GET /v1/jobs/{job_id}?wait=100 HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
        served.http.headers["Connection"] = "close"
        clients = [all.enter_context(connect(served)) for _ in range(2)]
        for client in clients:
            client.sendall(wait)
        # Asked of the registry: a scrape would be a connection more.
        waiting = served.gateway.metrics.registry.get_sample_value
        wait_until(lambda: waiting("koala_waiting_clients") == 2)
        refused = served.http.get("/v1/jobs")
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "too_many_connections"
        assert int(refused.headers["retry-after"]) >= 1
        assert closed(served, "refused") == 1
        assert served.http.get("/healthz").status_code == 200
        worker.finish(worker.take())
        for client in clients:
            assert client.recv(65_536).startswith(b"HTTP/1.1 200")
        assert served.http.get("/v1/jobs").status_code == 200


def test_eleven_hundred_silent_connections_at_a_thousand_descriptors_lock_nobody_out(
    tmp_path: Path,
) -> None:
    assert raise_descriptor_limit() > 1500, "this test needs descriptors itself"
    port = free_port()
    base_url = f"http://127.0.0.1:{port}"
    arguments, env = command(data_dir=tmp_path, port=port)
    with (
        ExitStack() as all,
        subprocess.Popen(
            [sys.executable, "-c", LIMITED, *arguments], env=env, stderr=subprocess.PIPE, text=True
        ) as running,
    ):
        try:
            wait_until(lambda: alive(base_url), 60)
            for _ in range(1100):
                all.enter_context(socket.create_connection(("127.0.0.1", port), timeout=20))
            assert httpx.get(f"{base_url}/healthz", timeout=20).is_success
            metrics = httpx.get(f"{base_url}/metrics", timeout=20).text
        finally:
            running.terminate()
        assert running.stderr is not None
        lines = [json.loads(line) for line in running.stderr]
    values = dict(line.rsplit(" ", 1) for line in metrics.splitlines() if line[0] != "#")
    assert float(values["process_max_fds"]) == 1024
    assert float(values["process_open_fds"]) < 1024
    assert float(values['koala_http_connections_closed_total{reason="limit"}']) > 0
    # A line says so, not one for each connection.
    told = [line for line in lines if line["event"] == "the limit of connections is reached"]
    assert len(told) == 1
    assert told[0]["level"] == "warning"


# The soft limit is lower still: the gateway raises it to the hard one.
LIMITED = (
    "import os, resource, sys\n"
    "resource.setrlimit(resource.RLIMIT_NOFILE, (256, 1024))\n"
    "os.execv(sys.argv[1], sys.argv[1:])\n"
)


def test_more_connections_than_descriptors_are_refused_at_the_start(tmp_path: Path) -> None:
    arguments, env = command(data_dir=tmp_path, port=free_port(), max_connections=900)
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, *arguments],
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert "KOALA_MAX_CONNECTIONS" in line
    assert "1024" in line


def test_raising_the_limit_of_descriptors_reaches_the_hard_one() -> None:
    assert raise_descriptor_limit() == resource.getrlimit(resource.RLIMIT_NOFILE)[1]


class FakeConnection:
    """Stands for a connection of a client."""

    def __init__(self) -> None:
        self.is_evicted = False

    def evict(self) -> None:
        self.is_evicted = True


def test_who_has_been_silent_longest_goes_first() -> None:
    connections = Connections(limit=RESERVE, metrics=Metrics())
    clients = [FakeConnection() for _ in range(RESERVE)]
    for client in clients:
        connections.opened(client)
    # The first one asks something and is silent again: since then, not since it came.
    connections.busy(clients[0])
    connections.silent(clients[0])
    for _ in range(RESERVE - 1):
        connections.opened(FakeConnection())
    assert [client.is_evicted for client in clients] == [False] + [True] * (RESERVE - 1)
    connections.opened(FakeConnection())
    assert clients[0].is_evicted


def test_busy_connections_are_never_closed_and_the_newest_may_still_ask() -> None:
    connections = Connections(limit=4, metrics=Metrics())
    busy = [FakeConnection() for _ in range(6)]
    for client in busy:
        connections.opened(client)
        connections.busy(client)
    newest = [FakeConnection() for _ in range(RESERVE + 1)]
    for client in newest:
        connections.opened(client)
    assert not any(client.is_evicted for client in busy)
    assert [client.is_evicted for client in newest] == [True] + [False] * RESERVE
    connections.busy(newest[-1])
    assert connections.refuse("/v1/jobs")
    assert not connections.refuse("/healthz")


def head_of_post(path: str, length: int) -> bytes:
    return (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {length}\r\n\r\n"
    ).encode()


def submit(served: Served) -> str:
    headers = {"Prefer": "respond-async"}
    response = served.http.post(GENERATIONS, json={"prompt": "a koala"}, headers=headers)
    return str(response.json()["id"])


def read_to_the_cut(connection: socket.socket) -> bytes:
    answer = b""
    try:
        while data := connection.recv(65_536):
            answer += data
    except ConnectionResetError:
        pass
    return answer


def test_a_refused_body_ends_a_stream_or_a_wait_without_an_unexpected_error(
    api: Served, caplog: pytest.LogCaptureFixture
) -> None:
    job_id = submit(api)
    chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    for path in (f"/v1/jobs/{job_id}/events", f"/v1/jobs/{job_id}?wait=100"):
        head = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
        with connect(api) as connection:
            connection.sendall(head.encode() + 4 * chunk)
            read_until(connection, b"\r\n\r\n")
    wait_until(lambda: api.gateway.feeds.listeners == 0)
    assert "unexpected error" not in caplog.text
    assert "never retrieved" not in caplog.text
