"""A receiver of webhooks on a real socket, which answers as a test wants, and what it is about."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from pydantic import SecretStr
from standardwebhooks import Webhook

from koala.settings import Settings
from service.webhooks.pace import Pace
from tests.service.fakes import FakeWorker, Served, wait_until

SECRET = "whsec_" + "a" * 44
# Again soon, and not for long.
QUICK = Pace(delays=(0.1, 0.1, 0.1), poll_seconds=0.05)


@dataclass(frozen=True)
class Delivery:
    """One request as it came in; ``at`` is in seconds of the monotonic clock."""

    path: str
    headers: dict[str, str]
    body: bytes
    at: float

    @property
    def id(self) -> str:
        """The message's id."""
        return self.headers["webhook-id"]

    def verified(self, secret: str) -> Any:
        """The JSON body, if the signature is right."""
        return Webhook(secret).verify(self.body, self.headers)

    @property
    def json(self) -> Any:
        """The JSON body."""
        return json.loads(self.body)


@dataclass
class Receiver:
    """What came in so far.

    ``answers`` are the statuses of the next requests, with more headers if need be; after them it
    is always 204. While ``hold`` is not set, answers are kept back.
    """

    url: str
    deliveries: list[Delivery] = field(default_factory=list)
    answers: list[tuple[int, dict[str, str]]] = field(default_factory=list)
    hold: threading.Event = field(default_factory=threading.Event)
    open_now: int = 0
    most_open: int = 0

    def ids(self) -> list[str]:
        """The ids of all messages, one for each request."""
        return [delivery.id for delivery in self.deliveries]


@contextmanager
def receiving() -> Iterator[Receiver]:
    """Receive until the context ends."""
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            headers = {name.lower(): value for name, value in self.headers.items()}
            with lock:
                delivery = Delivery(self.path, headers, body, time.monotonic())
                receiver.deliveries.append(delivery)
                receiver.open_now += 1
                receiver.most_open = max(receiver.most_open, receiver.open_now)
                status, more = receiver.answers.pop(0) if receiver.answers else (204, {})
            receiver.hold.wait(120)
            with lock:
                receiver.open_now -= 1
            self.send_response_only(status)
            for name, value in ({"Date": self.date_time_string()} | more).items():
                self.send_header(name, value)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def do_GET(self) -> None:
            # Nothing of ours sends GET: whoever follows a redirect would.
            with lock:
                receiver.deliveries.append(Delivery(self.path, {}, b"", time.monotonic()))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    receiver = Receiver(f"http://127.0.0.1:{server.server_address[1]}/hook")
    receiver.hold.set()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield receiver
    finally:
        receiver.hold.set()
        server.shutdown()
        server.server_close()
        thread.join(120)


def with_webhooks(settings: Settings) -> Settings:
    """The same settings with webhooks, to this machine too."""
    more = {"webhook_secret": SecretStr(SECRET), "webhook_allow_private": True}
    return settings.model_copy(update=more)


def submit(served: Served, url: str, **fields: Any) -> str:
    """Have a job admitted whose end is told to ``url``; its id."""
    response = served.http.post(
        "/v1/images/generations",
        json={"prompt": "a koala", "webhook_url": url} | fields,
        headers={"Prefer": "respond-async"},
    )
    assert response.status_code == 202, response.text
    return str(response.json()["id"])


def outbox(worker: FakeWorker) -> dict[str, float]:
    """Job ids, by when their webhook is due."""
    entries = worker.redis.zrange(worker.keys.outbox, 0, -1, withscores=True)
    return {name.decode(): due for name, due in entries}


def count(served: Served, outcome: str) -> float:
    """How many attempts of this gateway had that outcome."""
    return served.metric(f'koala_webhooks_total{{outcome="{outcome}"}}')


def settled(served: Served, worker: FakeWorker, outcome: str, number: int = 1) -> None:
    """Wait until ``number`` webhooks ended in ``outcome`` and none is left."""
    wait_until(lambda: count(served, outcome) == number and not outbox(worker))
