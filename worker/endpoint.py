"""What a worker serves over HTTP: its metrics, and whether it is well."""

import socket
import threading
from collections.abc import Callable, Iterable
from http import HTTPStatus
from wsgiref.simple_server import WSGIRequestHandler, make_server
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.exposition import ThreadingWSGIServer

HealthCheck = Callable[[], str | None]


class Endpoint:
    """``/metrics`` and ``/healthz`` of one worker.

    Until :meth:`watch` is called the worker is not well: it is still starting.

    Args:
        registry: The metrics.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._metrics: WSGIApplication = make_wsgi_app(registry)
        self._trouble: HealthCheck = lambda: "The worker is starting."

    def watch(self, trouble: HealthCheck) -> None:
        """From now on ask ``trouble`` what is wrong; ``None`` says that all is well."""
        self._trouble = trouble

    def serve(self, host: str, port: int) -> str:
        """Serve until the process ends; the URL of the metrics. Port 0 picks a free one.

        Raises:
            OSError: The port is taken, or there is no such address.
        """
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]

        class Server(ThreadingWSGIServer):
            address_family = family

        server = make_server(str(address[0]), port, self.app, Server, _Silent)
        threading.Thread(target=server.serve_forever, name="endpoint", daemon=True).start()
        return f"http://{host}:{server.server_port}/metrics"

    def app(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """The WSGI application."""
        match environ["PATH_INFO"]:
            case "/metrics":
                return self._metrics(environ, start_response)
            case "/healthz":
                trouble = self._trouble()
                if trouble is None:
                    return _text(start_response, HTTPStatus.OK, "ok")
                return _text(start_response, HTTPStatus.SERVICE_UNAVAILABLE, trouble)
            case _:
                return _text(start_response, HTTPStatus.NOT_FOUND, "There is /metrics, /healthz.")


class _Silent(WSGIRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Write no line: probes and scrapes would make up most of the log."""


def _text(start_response: StartResponse, status: HTTPStatus, text: str) -> list[bytes]:
    body = f"{text}\n".encode()
    headers = [("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(body)))]
    start_response(f"{status.value} {status.phrase}", headers)
    return [body]
