"""``koala generate`` at a gateway that asks for keys."""

import http.server
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from koala.client import Client
from koala.settings import Settings
from tests.service.fakes import FakeWorker, Served, picture, serving
from tests.service.keyed import asking, make_key, secret_of, with_keys


def generate(served: Served, folder: Path, *options: str, **env: str) -> tuple[int, str]:
    """Exit code and stderr of a run."""
    arguments = ["generate", "a koala", "-o", "koala.png", "--url", served.base_url, *options]
    done = subprocess.run(
        [sys.executable, "-m", "koala", *arguments],
        env={**os.environ, "COLUMNS": "200", **env},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.returncode, done.stderr.strip()


def test_it_sends_the_key_of_the_option_or_of_the_environment(
    settings: Settings, worker: FakeWorker, tmp_path: Path
) -> None:
    with asking(settings, private_images=True) as served, worker.working():
        for options, env in (
            (["--api-key", secret_of("alice")], {}),
            ([], {"KOALA_API_KEY": secret_of("alice")}),
        ):
            code, error = generate(served, tmp_path, *options, **env)
            assert code == 0, error
            (tmp_path / "koala.png").unlink()


@pytest.mark.parametrize(
    ("name", "says"),
    [
        (None, "Give yours with --api-key or KOALA_API_KEY."),
        ("stranger", "not known here. See --api-key and KOALA_API_KEY."),
        ("reader", "does not have the scope `generate`"),
        ("hasty", "The rate limit of 1 request per hour is reached; try again in"),
    ],
)
def test_it_says_in_one_line_what_is_wrong_with_the_key(
    settings: Settings, worker: FakeWorker, tmp_path: Path, name: str | None, says: str
) -> None:
    keyed = with_keys(settings)
    make_key(keyed, "reader", "read")
    make_key(keyed, "hasty", rate_limit="1/hour")
    options = [] if name is None else ["--api-key", secret_of(name)]
    with serving(keyed) as served, worker.working():
        if name == "hasty":
            assert generate(served, tmp_path, *options)[0] == 0
        code, error = generate(served, tmp_path, *options)
    assert code == 1
    [line] = error.splitlines()
    assert says in line


@pytest.fixture
def elsewhere() -> Iterator[tuple[str, list[str | None]]]:
    """Another server with an image, and the ``Authorization`` headers that reach it."""
    received: list[str | None] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            received.append(self.headers["Authorization"])
            self.send_response(200)
            self.end_headers()
            self.wfile.write(picture("png"))

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", received
        server.shutdown()
        thread.join(10)


def test_it_shows_its_key_to_no_other_server(
    settings: Settings, elsewhere: tuple[str, list[str | None]]
) -> None:
    url, received = elsewhere
    with (
        asking(settings, public_url=url) as served,
        Client(served.base_url, secret_of("alice")) as client,
    ):
        client.enqueue({"prompt": "a koala"})
        assert client.fetch(f"{url}/v1/images/x.png") == picture("png")
    assert received == [None]
