"""The guard on real sockets: what a name resolves to decides, at the moment of connecting."""

import asyncio
import ssl
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpcore
import pytest

from koala.clock import RedisClock
from service.webhooks import sender
from service.webhooks.guard import AddressRefused, GuardedBackend
from service.webhooks.sender import Answer, Sender, Undelivered
from tests.service.webhook_rig import SECRET, receiving


async def sent(url: str, *, allow_private: bool) -> Answer:
    clock = RedisClock()
    clock.learn(0.0, 1.8e9, 0.0)
    postman = Sender([SECRET], clock, allow_private=allow_private)
    try:
        return await postman.send(url, "job_1", "{}")
    finally:
        await postman.close()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.1"])
def test_loopback_is_reached_where_the_setting_says_so(host: str) -> None:
    with receiving() as receiver:
        url = receiver.url.replace("127.0.0.1", host)
        assert asyncio.run(sent(url, allow_private=True)).is_success
        [delivery] = receiver.deliveries
        # The receiver is told the name, not the address that it stood for.
        assert delivery.headers["host"] == url.split("/")[2]


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.1"])
def test_loopback_is_refused_otherwise_and_hears_nothing(host: str) -> None:
    with receiving() as receiver:
        with pytest.raises(AddressRefused, match=r"127\.0\.0\.1.* not public"):
            asyncio.run(sent(receiver.url.replace("127.0.0.1", host), allow_private=False))
        assert receiver.deliveries == []


class Resolver:
    """Stands in for the system's: other addresses each time, as an attacker's name server."""

    def __init__(self, *answers: list[str]) -> None:
        self.answers = list(answers)
        self.asked = 0

    async def __call__(self, host: str, port: int, **_: object) -> list[object]:
        self.asked += 1
        return [(None, None, None, "", (address, port)) for address in self.answers.pop(0)]


class Network(httpcore.AsyncNetworkBackend):
    """Notes where it is to connect to; only ``reachable`` answers."""

    def __init__(self, reachable: str) -> None:
        self.reachable = reachable
        self.tried: list[str] = []

    async def connect_tcp(self, host: str, *_: object, **__: object) -> httpcore.AsyncNetworkStream:
        self.tried.append(host)
        if host != self.reachable:
            raise httpcore.ConnectError("nobody is there")
        return httpcore.AsyncMockStream([])


def connected(resolver: Resolver, reachable: str) -> list[str]:
    """The addresses that were tried."""
    network = Network(reachable)

    async def main() -> None:
        asyncio.get_running_loop().getaddrinfo = resolver  # type: ignore[method-assign]
        guard = GuardedBackend(allow_private=False, network=network)
        await guard.connect_tcp("koala.example", 443, timeout=5)

    asyncio.run(main())
    return network.tried


def test_the_address_that_was_checked_is_the_one_that_is_connected_to() -> None:
    resolver = Resolver(["8.8.8.8"], ["127.0.0.1"])
    assert connected(resolver, "8.8.8.8") == ["8.8.8.8"]
    assert resolver.asked == 1


def test_of_several_addresses_only_public_ones_are_tried_until_one_answers() -> None:
    resolver = Resolver(["10.0.0.1", "8.8.4.4", "::1", "8.8.8.8"])
    assert connected(resolver, "8.8.8.8") == ["8.8.4.4", "8.8.8.8"]


def test_a_name_that_does_not_resolve_is_not_delivered_to() -> None:
    with pytest.raises(Undelivered, match="does not resolve"):
        asyncio.run(sent(f"http://{'k' * 63}.{'k' * 63}.invalid/", allow_private=True))


def test_nobody_there_is_not_delivered_to() -> None:
    with receiving() as receiver:
        url = receiver.url
    with pytest.raises(Undelivered):
        asyncio.run(sent(url, allow_private=True))


def test_who_does_not_answer_in_time_is_not_delivered_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sender, "_TOTAL_SECONDS", 0.2)
    with receiving() as receiver:
        receiver.hold.clear()
        with pytest.raises(Undelivered, match=r"no answer within 0\.2 s"):
            asyncio.run(sent(receiver.url, allow_private=True))


def test_an_answer_that_is_not_http_is_none() -> None:
    async def main() -> None:
        async with tcp_server(b"SSH-2.0-OpenSSH\r\n\r\n") as port:
            await sent(f"http://127.0.0.1:{port}/", allow_private=True)

    with pytest.raises(Undelivered):
        asyncio.run(main())


def test_a_long_answer_is_not_read() -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000000\r\n\r\n"

    async def main() -> Answer:
        async with tcp_server(head, keep_open=True) as port:
            return await sent(f"http://127.0.0.1:{port}/", allow_private=True)

    assert asyncio.run(main()) == Answer(200)


def test_tls_goes_by_the_name_and_refuses_a_certificate_that_nobody_vouches_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    make = (
        "openssl req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=localhost "
        f"-addext subjectAltName=DNS:localhost -keyout {key} -out {certificate}"
    )
    subprocess.run(make.split(), check=True, capture_output=True)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    answer = b"HTTP/1.1 204 No Content\r\n\r\n"

    async def main(host: str) -> Answer:
        async with tcp_server(answer, context=context) as port:
            return await sent(f"https://{host}:{port}/", allow_private=True)

    with pytest.raises(Undelivered, match="certificate"):
        asyncio.run(main("localhost"))
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    assert asyncio.run(main("localhost")) == Answer(204)
    # The same server by its address, for which the certificate does not hold.
    with pytest.raises(Undelivered, match="certificate"):
        asyncio.run(main("127.0.0.1"))


@asynccontextmanager
async def tcp_server(
    answer: bytes, *, keep_open: bool = False, context: ssl.SSLContext | None = None
) -> AsyncIterator[int]:
    """The port of a server that says the same to everybody."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(answer)
        await writer.drain()
        if keep_open:
            await reader.read()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context) as server:
        yield server.sockets[0].getsockname()[1]
