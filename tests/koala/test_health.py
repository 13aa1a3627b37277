import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from koala.health import main
from tests.support import free_port


class Answers(BaseHTTPRequestHandler):
    """200 at /well, 503 elsewhere."""

    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/well" else 503)
        self.end_headers()
        self.wfile.write(b"no worker")

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def url() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_part_that_answers_is_healthy(url: str) -> None:
    assert main([f"{url}/well"]) == 0


def test_one_that_refuses_is_not_and_its_reason_is_told(
    url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([f"{url}/ill"]) == 1
    assert capsys.readouterr().err == f"{url}/ill: 503 no worker\n"


def test_one_that_is_not_there_is_not_healthy(capsys: pytest.CaptureFixture[str]) -> None:
    url = f"http://127.0.0.1:{free_port()}/healthz"
    assert main([url]) == 1
    assert "Connection refused" in capsys.readouterr().err


def test_a_proxy_of_the_environment_is_not_asked(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port()}")
    assert main([f"{url}/well"]) == 0


def test_it_runs_as_a_module_and_wants_a_url() -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "koala.health"], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 2
    assert "usage" in ran.stderr
