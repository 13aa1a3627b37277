"""The README's pictures of the playground: ``python -m tests.playground.pictures docs``."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.support import free_port, wait_until_ready

UNDER_WAY = "a koala to the left of a banana on a white background"
FINISHED = (
    "a rainbow on a white background",
    "a pineapple on a red background",
    "a cat to the left of a fish on a white background",
    "a snowman on a blue background",
    "a rocket to the left of a koala on a yellow background",
    "a clown on a white background",
    "a banana on a purple background",
    "a fox to the left of an apple on a white background",
    "an owl on a green background",
    "a koala on a blue background",
)


def main(folder: Path) -> None:
    """Write ``playground.png`` and ``gallery.png`` into ``folder``."""
    # However busy the machine is.
    expect.set_options(timeout=300_000)
    with service() as base_url, sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        page = visit(chromium, base_url)
        send(page, UNDER_WAY, n=4, num_inference_steps=100, seed=7)
        expect(page.locator("#running .job-state")).to_contain_text(re.compile(r"Step 2\d\d"))
        page.screenshot(path=folder / "playground.png")
        # A visitor of its own: a gallery belongs to one browser.
        page = visit(chromium, base_url)
        for number, prompt in enumerate(FINISHED):
            send(page, prompt, num_inference_steps=25, seed=7)
            expect(page.locator("#gallery img")).to_have_count(number + 1)
        expect(page.locator("#running-section")).to_be_hidden()
        page.evaluate("document.activeElement.blur()")
        page.screenshot(path=folder / "gallery.png")
        chromium.close()


def visit(chromium: Browser, base_url: str) -> Page:
    """The playground in a browser that was never there before."""
    page = chromium.new_context(viewport={"width": 1200, "height": 900}).new_page()
    page.goto(base_url)
    expect(page.locator("#service")).to_contain_text("Draws with koala-demo")
    return page


def send(page: Page, prompt: str, **fields: int) -> None:
    """Fill in the form and send it."""
    page.fill("#prompt", prompt)
    for name, value in fields.items():
        page.fill(f"#{name}", str(value))
    page.keyboard.press("Control+Enter")


@contextmanager
def service() -> Iterator[str]:
    """The address of a service of its own, which ends with the context."""
    port = free_port()
    base_url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log.txt"
        env = {**os.environ, "KOALA_DATA_DIR": folder, "KOALA_PORT": str(port)}
        with log.open("wb") as output:
            up = subprocess.Popen(
                [sys.executable, "-m", "koala", "up"], env=env, stdout=output, stderr=output
            )
        try:
            wait_until_ready(base_url, up, log)
            yield base_url
        finally:
            up.terminate()
            up.wait(30)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
