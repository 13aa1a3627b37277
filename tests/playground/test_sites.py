"""In a real browser: the gateway's own page may draw, pages of other sites may not."""

import shutil
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from koala.settings import Settings
from tests.service.fakes import FakeWorker, Served, serving, wait_until

GENERATIONS = "/v1/images/generations"
REFUSED = 'koala_http_requests_total{method="POST",route="unknown",status="403"}'


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A Chromium whose resolver sends evil.example here, as a DNS server of evil.example could."""
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=shutil.which("chromium"),
            args=["--no-sandbox", "--host-resolver-rules=MAP evil.example 127.0.0.1"],
        )
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    opened = browser.new_page()
    yield opened
    opened.close()


@pytest.fixture
def worker(settings: Settings) -> Iterator[FakeWorker]:
    fake = FakeWorker(settings)
    yield fake
    fake.redis.close()


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]"])
def test_the_playground_draws_under_each_name_of_this_machine(
    settings: Settings, worker: FakeWorker, page: Page, host: str
) -> None:
    address = "::1" if host == "[::1]" else "127.0.0.1"
    with serving(settings.model_copy(update={"host": address})) as served:
        page.goto(f"http://{host}:{port_of(served)}/")
        expect(page.locator("#service")).to_contain_text("koala-demo", timeout=30_000)
        page.fill("#prompt", "a koala")
        page.keyboard.press("Control+Enter")
        wait_until(lambda: bool(worker.waiting()), 30)


def test_a_name_that_was_rebound_to_this_machine_shows_nothing(
    settings: Settings, page: Page
) -> None:
    with serving(settings) as served:
        response = page.goto(f"http://evil.example:{port_of(served)}/v1/jobs")
        assert response is not None
        assert response.status == 421


@pytest.fixture
def other_site(tmp_path: Path) -> Iterator[str]:
    """A page that is served from another port of this machine."""
    (tmp_path / "index.html").write_text("<p>another site</p>")
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"http://localhost:{server.server_port}/index.html"
        server.shutdown()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_page_of_another_origin_cannot_draw(
    settings: Settings, worker: FakeWorker, page: Page, other_site: str, host: str
) -> None:
    with serving(settings) as served:
        page.goto(other_site)
        # What a form could send, so the browser asks for no leave first; it hides the answer.
        page.evaluate(
            """(url) => fetch(url, {
                method: "POST", mode: "no-cors", headers: {"Content-Type": "text/plain"},
                body: JSON.stringify({prompt: "a koala"}),
            }).catch(() => null)""",
            f"http://{host}:{port_of(served)}{GENERATIONS}",
        )
        assert served.metric(REFUSED) == 1
        assert worker.waiting() == []


def port_of(served: Served) -> int:
    return int(served.base_url.rpartition(":")[2])
