"""The operator's page in a real browser."""

from collections.abc import Iterator

import httpx
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

from koala.settings import Settings
from tests.service.fakes import FakeWorker
from tests.service.keyed import asking, bearer, secret_of, submit
from tests.support import Stack

LONG = {"num_inference_steps": 150, "n": 10, "prompt": "a koala on a blue background"}
GIB = 2**30


@pytest.fixture
def busy(stack: Stack) -> Iterator[Stack]:
    """The service with jobs that are drawn and jobs that wait."""
    jobs = []
    for _ in range(6):
        response = httpx.post(
            f"{stack.base_url}/v1/images/generations",
            json=LONG,
            headers={"Prefer": "respond-async"},
        )
        jobs.append(response.json()["id"])
    yield stack
    for job_id in jobs:
        httpx.post(f"{stack.base_url}/v1/jobs/{job_id}/cancel")


def test_an_operator_sees_workers_and_jobs_and_cancels_one(page: Page, busy: Stack) -> None:
    page.click("text=Workers")
    expect(page.locator("#workers li")).to_have_count(1)
    expect(page.locator("#workers li")).to_contain_text("koala-demo on cpu")
    running, queue = page.locator("#running > li"), page.locator("#queue > li")
    expect(running.first).to_contain_text("step")
    expect(running.first).to_contain_text("done in")
    expect(queue.first).to_contain_text("1.")
    before = running.first.locator(".facts").text_content() or ""
    expect(running.first.locator(".facts")).not_to_have_text(before)

    waiting = queue.count()
    last = queue.last
    last.locator("button").focus()
    page.keyboard.press("Enter")
    expect(page.locator("#confirm-prompt")).to_have_text(str(LONG["prompt"]))
    page.keyboard.press("Escape")
    expect(page.locator("#confirm")).to_be_hidden()
    expect(queue).to_have_count(waiting)

    last.locator("button").click()
    page.click("text=Cancel the job")
    expect(page.locator("#announcer")).to_have_text("Cancelled")
    expect(queue).to_have_count(waiting - 1)
    newest = httpx.get(f"{busy.base_url}/v1/jobs?limit=1").json()["data"][0]
    assert newest["status"] == "cancelled"


def test_without_an_admins_key_the_page_shows_nothing(browser: Browser, settings: Settings) -> None:
    with asking(settings) as served:
        job_id = submit(served, "alice", prompt="a secret")
        context = browser.new_context()
        page = context.new_page()
        page.goto(f"{served.base_url}/admin")
        for name, told in (
            (None, "An API key is needed"),
            ("alice", "does not have the scope admin"),
        ):
            if name is not None:
                page.fill("#key-input", secret_of(name))
                page.keyboard.press("Enter")
            expect(page.locator("#key-reason")).to_contain_text(told)
            expect(page.locator("#view")).to_be_hidden()
            assert "a secret" not in page.content()
        page.fill("#key-input", secret_of("root"))
        page.keyboard.press("Enter")
        expect(page.locator("#queue")).to_contain_text("a secret")
        expect(page.locator("#queue")).to_contain_text("alice")
        page.click("#queue button")
        page.click("text=Cancel the job")
        expect(page.locator("#queue-empty")).to_be_visible()
        job = served.http.get(f"/v1/jobs/{job_id}", headers=bearer("alice")).json()
        assert job["status"] == "cancelled"
        context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious_on_the_operators_page(
    browser: Browser, settings: Settings, scheme: str
) -> None:
    worker = FakeWorker(settings)
    vram = {
        "total_bytes": 8 * GIB,
        "free_bytes": 2 * GIB,
        "held_bytes": 5 * GIB,
        "weights_bytes": 3 * GIB,
    }
    size = {"width": 64, "height": 64, "max_rows": 16, "step_seconds": {2: 0.4, 16: 2.0}}
    worker.advertise(name="gpu-0", device="cuda:0", rows=12, max_rows=16, vram=vram, sizes=[size])
    with asking(settings) as served:
        for name in ("alice", "bob", "alice"):
            submit(served, name, prompt="a koala to the left of a banana " * 9, priority="low")
        worker.step(worker.take(), 4)
        context = browser.new_context(
            color_scheme="dark" if scheme == "dark" else "light",
            bypass_csp=True,
            viewport={"width": 360, "height": 800},
        )
        page = context.new_page()
        page.goto(f"{served.base_url}/admin")
        page.fill("#key-input", secret_of("root"))
        page.keyboard.press("Enter")
        expect(page.locator("#workers")).to_contain_text("VRAM: 5.0 GiB of 8.0 GiB, 2.0 GiB free")
        expect(page.locator("#running > li")).to_have_count(1)
        assert page.locator("html").evaluate("node => node.scrollWidth") <= 360
        for step in (None, "#queue button"):
            if step is not None:
                page.locator(step).first.click()
            found = Axe().run(page).response["violations"]
            serious = [v["id"] for v in found if v["impact"] in ("serious", "critical")]
            assert serious == [], step
        context.close()
