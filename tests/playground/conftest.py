"""A real browser, for the page."""

import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.support import Stack


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium: the system's, or else the one that playwright has installed.

    For no longer than needed: playwright keeps an event loop running in this thread, where other
    tests start their own.
    """
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=shutil.which("chromium"),
            # A sandbox of its own is more than a container allows it.
            args=["--no-sandbox"],
        )
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser: Browser, stack: Stack) -> Iterator[Page]:
    """The playground of the running service, in a browser that was never there before."""
    context = browser.new_context(viewport={"width": 1200, "height": 900})
    context.set_default_timeout(180_000)
    # Other tests draw beside this one.
    expect.set_options(timeout=180_000)
    opened = context.new_page()
    troubles: list[str] = []
    opened.on("pageerror", lambda error: troubles.append(str(error)))
    opened.goto(stack.base_url)
    yield opened
    context.close()
    assert troubles == []
