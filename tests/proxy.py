"""A TCP proxy that loses connections at a word, for tests of clients."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress


class Proxy:
    """Passes everything on to a server, until told otherwise.

    Args:
        base_url: The server.
    """

    def __init__(self, base_url: str) -> None:
        host, port = base_url.removeprefix("http://").split(":")
        self._server = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.base_url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        # What the clients sent, each connection by itself.
        self.requests: list[bytearray] = []
        self._cut_at: bytes | None = None
        self._silence = threading.Event()
        self._open: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def cut_at(self, marker: bytes) -> None:
        """Cut the next connection on which the server sends ``marker``, which gets lost."""
        self._cut_at = marker

    def be_silent(self) -> None:
        """Take everything from now on and pass on nothing."""
        self._silence.set()

    def close(self) -> None:
        """Cut all connections and take no more."""
        # Closing alone does not wake a thread that waits for a connection.
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for each in self._open:
            _cut(each)
        for thread in self._threads:
            thread.join(10)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(self._server)
            self._open += [client, server]
            sent = bytearray()
            self.requests.append(sent)
            for target, arguments in (
                (self._ask, (client, server, sent)),
                (self._answer, (server, client)),
            ):
                self._threads.append(threading.Thread(target=target, args=arguments))
                self._threads[-1].start()

    def _ask(self, client: socket.socket, server: socket.socket, sent: bytearray) -> None:
        with suppress(OSError):
            while data := client.recv(65536):
                sent += data
                if not self._silence.is_set():
                    server.sendall(data)
        _cut(server)

    def _answer(self, server: socket.socket, client: socket.socket) -> None:
        seen = b""
        with suppress(OSError):
            while data := server.recv(65536):
                seen = seen[-1000:] + data
                if self._cut_at is not None and self._cut_at in seen:
                    self._cut_at = None
                    break
                if not self._silence.is_set():
                    client.sendall(data)
        _cut(client)
        _cut(server)


def _cut(connection: socket.socket) -> None:
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()


@contextmanager
def between(base_url: str) -> Iterator[Proxy]:
    """A proxy to a server, for as long as the context lasts."""
    proxy = Proxy(base_url)
    try:
        yield proxy
    finally:
        proxy.close()
