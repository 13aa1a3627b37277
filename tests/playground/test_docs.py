"""The API's description in a real browser that reaches this server and nothing else."""

import re
from collections.abc import Iterator
from urllib.parse import urlsplit

import httpx
import pytest
from playwright.sync_api import Browser, Page, Route, expect

from tests.support import Stack


@pytest.fixture
def asked() -> list[str]:
    """Addresses that the page asked for."""
    return []


@pytest.fixture
def docs(browser: Browser, stack: Stack, asked: list[str]) -> Iterator[Page]:
    """`/docs`, without anything from elsewhere."""
    context = browser.new_context(viewport={"width": 1200, "height": 900})
    # Other tests draw beside this one.
    context.set_default_timeout(60_000)
    expect.set_options(timeout=60_000)
    troubles: list[str] = []

    def pass_on(route: Route) -> None:
        asked.append(route.request.url)
        if route.request.url.startswith(f"{stack.base_url}/"):
            route.continue_()
        else:
            route.abort()

    context.route(re.compile("^https?:"), pass_on)
    page = context.new_page()
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.on("console", lambda said: troubles.append(said.text) if said.type == "error" else None)
    page.goto(f"{stack.base_url}/docs")
    yield page
    context.close()
    assert troubles == []


def test_the_page_shows_every_operation_without_the_internet(
    docs: Page, stack: Stack, asked: list[str]
) -> None:
    document = httpx.get(f"{stack.base_url}/openapi.json").json()
    operations = [
        operation
        for methods in document["paths"].values()
        for name, operation in methods.items()
        if name in ("get", "post", "put", "delete", "patch", "head")
    ]
    webhooks = document.get("webhooks", {})
    expect(docs.locator(".opblock")).to_have_count(len(operations) + len(webhooks))
    expect(docs.locator(".info .title")).to_contain_text("koala-serve")
    docs.click(".opblock-post >> nth=0")
    expect(docs.locator(".opblock.is-open .opblock-body")).to_contain_text("Request body")
    assert {urlsplit(url).netloc for url in asked} == {urlsplit(stack.base_url).netloc}


def test_an_operation_can_be_tried_from_the_page(docs: Page, asked: list[str]) -> None:
    models = docs.locator(".opblock", has_text="/v1/models").first
    models.locator(".opblock-summary").click()
    models.get_by_role("button", name="Try it out").click()
    models.get_by_role("button", name="Execute").click()
    expect(models.locator(".live-responses-table .response-col_status").last).to_contain_text("200")
    expect(models.locator(".live-responses-table")).to_contain_text("koala-demo")
    assert any(url.endswith("/v1/models") for url in asked)
