"""HTTP/1.1 beyond what usual clients send: half-closed connections, absolute-form targets."""

import inspect
import json
import os
import socket
import threading
from collections.abc import Iterator

import pytest
import structlog
from structlog.testing import capture_logs
from structlog.typing import EventDict
from uvicorn.protocols.http import h11_impl
from uvicorn.protocols.http.flow_control import FlowControl

from koala.settings import Settings
from service.protocol import GuardedProtocol
from tests.service.fakes import FakeWorker, Served, serving, wait_until
from tests.service.sockets import connect, parse, read_all, read_until
from tests.service.test_slow_clients import GENERATIONS, head_of_post, submit

BODY = b'{"prompt": "a koala"}'


@pytest.fixture(scope="module", params=["uvloop", "asyncio"])
def api(
    request: pytest.FixtureRequest, valkey_server: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    """A gateway on either event loop."""
    folder = tmp_path_factory.mktemp("api")
    settings = Settings(redis_url=valkey_server, data_dir=folder, queue="protocol")
    with serving(settings, loop=request.param) as served:
        yield served


@pytest.fixture
def worker(api: Served) -> Iterator[FakeWorker]:
    fake = FakeWorker(api.settings)
    yield fake
    fake.redis.close()


def half_closed(served: Served, request: bytes) -> socket.socket:
    """A connection that has sent ``request`` and will send no more."""
    connection = connect(served)
    connection.sendall(request)
    connection.shutdown(socket.SHUT_WR)
    return connection


def get(path: str, host: str = "localhost") -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()


@pytest.mark.parametrize("path", ["/healthz", "/metrics", "/v1/jobs", "/v1/models", "/"])
def test_a_half_closed_client_gets_its_answer(api: Served, path: str) -> None:
    with half_closed(api, get(path)) as connection:
        assert parse(read_all(connection)).status == 200


def test_a_half_closed_client_can_submit(api: Served, worker: FakeWorker) -> None:
    request = head_of_post(GENERATIONS, len(BODY)).replace(
        b"\r\n\r\n", b"\r\nPrefer: respond-async\r\n\r\n"
    )
    with half_closed(api, request + BODY) as connection:
        answer = parse(read_all(connection))
    assert answer.status == 202
    job_id = worker.take()
    worker.finish(job_id)
    assert json.loads(answer.body)["id"] == job_id
    # What is over needs no waiting either.
    with half_closed(api, get(f"/v1/jobs/{job_id}?wait=100")) as connection:
        assert json.loads(parse(read_all(connection)).body)["status"] == "completed"


def test_a_half_closed_client_gets_the_whole_of_a_large_answer(api: Served) -> None:
    name, image = f"{'0d' * 16}-0.png", os.urandom(20_000_000)
    api.gateway.store.put(name, image)
    with half_closed(api, get(f"/v1/images/{name}")) as connection:
        assert parse(read_all(connection)).body == image


def test_all_requests_that_came_before_the_half_close_are_answered(api: Served) -> None:
    with half_closed(api, 3 * get("/healthz")) as connection:
        assert read_all(connection).count(b"HTTP/1.1 200") == 3


def test_a_half_close_while_waiting_is_the_hang_up_that_cancels(
    api: Served, worker: FakeWorker
) -> None:
    with connect(api) as connection:
        connection.sendall(head_of_post(GENERATIONS, len(BODY)) + BODY)
        job_id = worker.take()
        connection.shutdown(socket.SHUT_WR)
        answer = parse(read_all(connection))
    assert answer.status == 499
    assert answer.error["code"] == "client_closed_request"
    wait_until(lambda: worker.redis.hexists(worker.keys.job(job_id), "koala_cancel"))
    worker.cancel(job_id)


def test_a_half_close_ends_an_event_stream(api: Served, worker: FakeWorker) -> None:
    job_id = submit(api)
    with connect(api) as connection:
        connection.sendall(get(f"/v1/jobs/{job_id}/events"))
        assert connection.recv(65_536).startswith(b"HTTP/1.1 200")
        connection.shutdown(socket.SHUT_WR)
        read_all(connection)
    worker.finish(worker.take())


def test_a_half_close_before_the_end_of_a_request_is_the_end(api: Served) -> None:
    with half_closed(api, head_of_post(GENERATIONS, 1000) + BODY) as connection:
        assert read_all(connection) == b""
    with half_closed(api, b"GET /healthz HTTP/1.1\r\n") as connection:
        assert read_all(connection) == b""


def test_a_hang_up_is_noticed_behind_requests_that_wait_for_their_turn(
    api: Served, worker: FakeWorker
) -> None:
    with connect(api) as connection:
        connection.sendall(head_of_post(GENERATIONS, len(BODY)) + BODY)
        job_id = worker.take()
        for _ in range(3):
            connection.sendall(get("/healthz"))
            # Another connection's answer: the piece has been read, or else it never is.
            assert api.http.get("/healthz").is_success
    wait_until(lambda: worker.redis.hexists(worker.keys.job(job_id), "koala_cancel"))
    worker.cancel(job_id)


def test_requests_that_wait_for_their_turn_are_answered_however_many_they_are(
    api: Served, worker: FakeWorker
) -> None:
    with connect(api) as connection:
        connection.sendall(head_of_post(GENERATIONS, len(BODY)) + BODY)
        job_id = worker.take()
        many = 5000
        sender = threading.Thread(
            target=connection.sendall, args=(many * get("/nothing") + get("/healthz"),)
        )
        sender.start()
        worker.finish(job_id)
        answer = read_until(connection, b'{"status":"ok"}')
        sender.join(20)
    assert answer.startswith(b"HTTP/1.1 200")
    assert answer.count(b"HTTP/1.1 404") == many


def test_the_next_request_on_a_connection_is_not_logged_with_the_last_ones_job(
    api: Served, worker: FakeWorker
) -> None:
    submit_async = head_of_post(GENERATIONS, len(BODY)).replace(
        b"\r\n\r\n", b"\r\nPrefer: respond-async\r\n\r\n"
    )
    with capture_logs([structlog.contextvars.merge_contextvars]) as lines, connect(api) as client:
        # At once, so that the second begins where the first one ends.
        client.sendall(submit_async + BODY + get("/v1/models"))
        read_until(client, b'"object":"list"')
        wait_until(lambda: len(requests(lines)) == 2)
    assert [(line["path"], "job_id" in line) for line in requests(lines)] == [
        (GENERATIONS, True),
        ("/v1/models", False),
    ]
    worker.finish(worker.take())


def requests(lines: list[EventDict]) -> list[EventDict]:
    """Lines of the requests above; those of the test before may still be written."""
    paths = (GENERATIONS, "/v1/models")
    return [line for line in lines if line["event"] == "request" and line["path"] in paths]


@pytest.mark.parametrize("answered", [True, False], ids=["thrown away", "read"])
def test_a_body_in_absurdly_small_chunks_is_refused(api: Served, answered: bool) -> None:
    """Each chunk costs as much as a large one, and while they are read all others wait."""
    path = "/nothing" if answered else GENERATIONS
    head = head_of_post(path, 0).replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
    with connect(api) as connection:
        connection.sendall(head)
        if answered:
            assert read_until(connection, b"}}").startswith(b"HTTP/1.1 404")
        connection.sendall(5000 * b"1\r\n \r\n")
        rest = read_all(connection)
    if answered:
        assert rest == b""
    else:
        assert parse(rest).error["code"] == "invalid_http"


def test_a_body_in_small_chunks_is_read(api: Served, worker: FakeWorker) -> None:
    head = head_of_post(GENERATIONS, 0).replace(
        b"Content-Length: 0", b"Prefer: respond-async\r\nTransfer-Encoding: chunked"
    )
    with connect(api) as connection:
        chunks = [b"%x\r\n%s\r\n" % (1, BODY[i : i + 1]) for i in range(len(BODY))]
        connection.sendall(head + 4000 * b"1\r\n \r\n" + b"".join(chunks) + b"0\r\n\r\n")
        assert connection.recv(65_536).startswith(b"HTTP/1.1 202")
    worker.finish(worker.take())


@pytest.mark.parametrize(
    ("target", "status"),
    [
        ("http://localhost/healthz", 200),
        ("HTTP://LOCALHOST:8000/healthz", 200),
        ("https://127.0.0.1/v1/jobs?limit=1", 200),
        ("http://[::1]:8000/v1/models", 200),
        ("http://localhost", 200),
        ("http://localhost?x=1", 200),
        ("http://localhost/v1/jobs?limit=0", 400),
        ("http://localhost/v1%2fjobs/%2e%2e", 404),
        ("http://localhost/http://localhost/healthz", 404),
        ("http:///v1/jobs", 400),
        ("http://user@localhost/v1/jobs", 400),
        ("http://local host/v1/jobs", 400),
        ("ftp://localhost/healthz", 404),
        ("localhost:8000", 404),
        ("*", 404),
    ],
)
def test_an_absolute_form_target_is_served(api: Served, target: str, status: int) -> None:
    request = f"GET {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()
    with connect(api) as connection:
        connection.sendall(request)
        assert parse(read_all(connection)).status == status


@pytest.mark.parametrize(
    ("target", "host", "status"),
    [
        ("http://evil.example/v1/jobs", "localhost", 421),
        ("http://localhost/v1/jobs", "evil.example", 200),
    ],
)
def test_the_authority_of_a_target_goes_before_the_host_header(
    api: Served, target: str, host: str, status: int
) -> None:
    request = f"GET {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode()
    with connect(api) as connection:
        connection.sendall(request)
        assert parse(read_all(connection)).status == status


def test_an_absolute_form_target_is_logged_as_its_path(
    api: Served, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"), connect(api) as connection:
        connection.sendall(b"GET http://localhost/v1/jobs HTTP/1.0\r\n\r\n")
        read_all(connection)
        wait_until(lambda: "path='/v1/jobs'" in caplog.text)


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"nonsense\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET /\x00 HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: x\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    ],
)
def test_what_is_not_http_is_told_so_in_the_form_of_all_errors(
    api: Served, request_bytes: bytes
) -> None:
    with connect(api) as connection:
        connection.sendall(request_bytes)
        answer = parse(read_all(connection))
    assert answer.status in (400, 501)
    assert answer.error["code"] == "invalid_http"
    assert answer.headers["connection"] == "close"


def test_garbage_behind_an_early_answer_only_ends_the_connection(
    api: Served, caplog: pytest.LogCaptureFixture
) -> None:
    head = b"POST /nothing HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    with connect(api) as connection:
        connection.sendall(head)
        assert read_until(connection, b"}}").startswith(b"HTTP/1.1 404")
        connection.sendall(b"zz\r\n")
        assert read_all(connection) == b""
    assert api.http.get("/healthz").is_success
    assert "Fatal error" not in caplog.text


def test_uvicorn_is_built_as_our_protocol_class_expects() -> None:
    base = h11_impl.H11Protocol
    parameters = list(inspect.signature(base.__init__).parameters)
    assert parameters == ["self", "config", "server_state", "app_state", "_loop"]
    # What we override is there, with the same parameters.
    for name in (
        "connection_made",
        "connection_lost",
        "data_received",
        "eof_received",
        "on_response_complete",
        "pause_writing",
        "resume_writing",
        "send_400_response",
    ):
        theirs, ours = getattr(base, name), getattr(GuardedProtocol, name)
        assert list(inspect.signature(theirs).parameters) == list(
            inspect.signature(ours).parameters
        )
    # It calls the application that it holds, and tells itself of each answer's end.
    source = inspect.getsource(base.handle_events)
    assert "app = self.app" in source
    # It parses with what we put in its parser's place.
    assert "event = self.conn.next_event()" in source
    assert "except h11.RemoteProtocolError:" in source
    assert "self.cycle = RequestResponseCycle(" in source
    assert "on_response=self.on_response_complete" in source
    assert "self.send_400_response(" in source
    # What we read of a request.
    cycle = inspect.getsource(h11_impl.RequestResponseCycle.__init__)
    for attribute in ("disconnected", "response_complete", "more_body", "message_event"):
        assert f"self.{attribute} = " in cycle
    receive = inspect.getsource(h11_impl.RequestResponseCycle.receive)
    assert "await self.message_event.wait()" in receive
    # What is written waits until what was written before has left.
    send = inspect.getsource(h11_impl.RequestResponseCycle.send)
    assert (
        "if self.flow.write_paused and not self.disconnected:\n            await self.flow.drain()"
        in send
    )
    assert "self.write_paused = " in inspect.getsource(FlowControl.__init__)
