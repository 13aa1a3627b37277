"""Clients that speak HTTP by hand."""

import json
import socket
from dataclasses import dataclass
from typing import Any

from tests.service.fakes import Served


@dataclass(frozen=True)
class Answer:
    """One HTTP response."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def error(self) -> dict[str, Any]:
        """What an error's body says."""
        error: dict[str, Any] = json.loads(self.body)["error"]
        return error


def connect(served: Served, receive_buffer: int | None = None) -> socket.socket:
    """A connection whose calls fail after 20 s."""
    host, _, port = served.base_url.removeprefix("http://").rpartition(":")
    connection = socket.socket()
    if receive_buffer is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    connection.settimeout(20)
    connection.connect((host, int(port)))
    return connection


def read_all(connection: socket.socket) -> bytes:
    """What comes until the server hangs up."""
    return b"".join(iter(lambda: connection.recv(65_536), b""))


def read_until(connection: socket.socket, end: bytes) -> bytes:
    """What comes until ``end`` has come."""
    answer = b""
    while end not in answer:
        data = connection.recv(65_536)
        assert data, answer
        answer += data
    return answer


def parse(answer: bytes) -> Answer:
    """The response that these bytes are, to the end of the connection."""
    head, _, body = answer.partition(b"\r\n\r\n")
    status, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    return Answer(int(status.split()[1]), headers, body)


def drip(connection: socket.socket, data: bytes, seconds: float = 0.05) -> bytes:
    """Send ``data`` byte by byte until the server hangs up; what it said."""
    answer = b""
    connection.settimeout(seconds)
    for i in range(len(data)):
        try:
            connection.sendall(data[i : i + 1])
            received = connection.recv(65_536)
            if not received:
                return answer
            answer += received
        except TimeoutError:
            pass
        except ConnectionError:
            return answer
    raise AssertionError("the server never hung up")
