"""The playground in a real browser, before the real service."""

import re
from datetime import datetime, timedelta

import httpx
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

from tests.support import Stack

PROMPT = "a koala to the left of a banana on a white background"


def generate(page: Page, prompt: str = PROMPT, **fields: object) -> None:
    """Fill in the form and send it by the keyboard."""
    expect(page.locator("#service")).to_contain_text("Draws with koala-demo")
    page.fill("#prompt", prompt)
    for name, value in fields.items():
        page.fill(f"#{name}", str(value))
    page.keyboard.press("Control+Enter")


def images(page: Page) -> list[str]:
    """Prompts of the images in the gallery."""
    return [image.get_attribute("alt") or "" for image in page.locator("#gallery img").all()]


def test_a_prompt_becomes_a_picture_that_sharpens_on_its_way(page: Page) -> None:
    generate(page, num_inference_steps=100, n=2, seed=7)

    preview = page.locator("#running .tile img").first
    expect(preview).to_have_attribute("src", re.compile(r"^data:image/jpeg;base64,"))
    early = preview.get_attribute("src")
    expect(preview).not_to_have_attribute("src", str(early))
    expect(page.locator("#running .job-state")).to_contain_text("Step")

    expect(page.locator("#gallery img")).to_have_count(2)
    expect(page.locator("#running-section")).to_be_hidden()
    assert images(page) == [PROMPT, PROMPT]
    picture = page.locator("#gallery img").first
    expect(picture).to_have_js_property("naturalWidth", 64)


def test_a_job_can_be_cancelled(page: Page, stack: Stack) -> None:
    generate(page, num_inference_steps=150, n=10)
    page.click("text=Cancel >> visible=true")

    expect(page.locator("#running-section")).to_be_hidden()
    expect(page.locator("#announcer")).to_have_text("Cancelled")
    assert images(page) == []
    newest = httpx.get(f"{stack.base_url}/v1/jobs?limit=1").json()["data"][0]
    assert newest["status"] == "cancelled"


def test_an_error_is_told_in_words_by_its_field(page: Page) -> None:
    generate(page, guidance_scale=99)

    error = page.locator("#guidance_scale-error")
    expect(error).to_have_text("guidance_scale must be a number from 0 to 30.")
    expect(page.locator("#guidance_scale")).to_be_focused()
    expect(page.locator("#guidance_scale")).to_have_attribute("aria-invalid", "true")
    page.fill("#guidance_scale", "2")
    page.keyboard.press("Control+Enter")
    expect(error).to_be_hidden()
    expect(page.locator("#gallery img")).to_have_count(1)


def test_a_page_that_was_left_in_the_middle_goes_on_where_it_was(page: Page) -> None:
    generate(page, num_inference_steps=150, n=4)
    expect(page.locator("#running .job-state")).to_contain_text("Step")

    page.reload()

    expect(page.locator("#running .job-head p").first).to_have_text(PROMPT)
    assert page.input_value("#prompt") == PROMPT
    expect(page.locator("#gallery img")).to_have_count(4)
    page.reload()
    expect(page.locator("#gallery img")).to_have_count(4)


def test_a_browser_whose_clock_is_wrong_keeps_its_images(page: Page) -> None:
    page.clock.set_fixed_time(datetime.now() + timedelta(days=2))
    generate(page, seed=7)
    expect(page.locator("#gallery img")).to_have_count(1)

    page.reload()

    expect(page.locator("#service")).to_contain_text("Draws with koala-demo")
    assert images(page) == [PROMPT]


def test_an_image_can_be_used_again_varied_downloaded_and_removed(page: Page) -> None:
    generate(page, seed=7)
    page.click("#gallery button")
    expect(page.locator("#viewer-facts")).to_contain_text("Seed7")
    with page.expect_download() as download:
        page.click("#download")
    assert download.value.suggested_filename.endswith("-0.png")

    page.click("#variations")
    expect(page.locator("#gallery img")).to_have_count(5)
    assert page.input_value("#seed") == "8"
    page.locator("#gallery button").first.click()
    page.keyboard.press("ArrowRight")
    expect(page.locator("#viewer-facts")).to_contain_text("Seed9")
    page.click("#remove")
    expect(page.locator("#gallery img")).to_have_count(4)


def test_the_request_can_be_had_as_code(page: Page) -> None:
    expect(page.locator("#service")).to_contain_text("Draws with")
    page.fill("#prompt", "it's a koala")
    page.fill("#seed", "5")
    page.click("summary")
    expect(page.locator("#curl")).to_contain_text('"prompt": "it\'\\\'\'s a koala"')
    expect(page.locator("#python")).to_contain_text('extra_body={"seed": 5}')


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(browser: Browser, stack: Stack, scheme: str) -> None:
    context = browser.new_context(
        color_scheme="dark" if scheme == "dark" else "light", bypass_csp=True
    )
    page = context.new_page()
    page.goto(stack.base_url)
    generate(page, seed=7)
    expect(page.locator("#gallery img")).to_have_count(1)
    for step in (None, "summary", "#gallery button"):
        if step is not None:
            page.click(step)
        found = Axe().run(page).response["violations"]
        serious = [v["id"] for v in found if v["impact"] in ("serious", "critical")]
        assert serious == [], step
    context.close()


def test_the_page_fits_a_phone(browser: Browser, stack: Stack) -> None:
    context = browser.new_context(viewport={"width": 360, "height": 700}, has_touch=True)
    page = context.new_page()
    page.goto(stack.base_url)
    generate(page, seed=7)
    expect(page.locator("#gallery img")).to_have_count(1)
    assert page.locator("html").evaluate("node => node.scrollWidth") <= 360
    context.close()
