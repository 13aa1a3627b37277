"""What images are built from, as far as that can be told without building them."""

import subprocess
import sys
from pathlib import Path

from tests.deploy import compose


def run(tool: str, *arguments: str) -> str:
    """Run a program that a Python package brought along; what it complains of."""
    command = [str(Path(sys.executable).parent / tool), *arguments]
    done = subprocess.run(command, cwd=compose.ROOT, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


def test_hadolint_finds_no_fault_with_the_dockerfile() -> None:
    assert run("hadolint", "Dockerfile") == ""


def test_shellcheck_finds_no_fault_with_the_scripts() -> None:
    scripts = [str(path) for path in (compose.ROOT / "deploy").glob("*.sh")]
    assert scripts
    assert run("shellcheck", *scripts) == ""


def test_neither_image_runs_as_root() -> None:
    text = (compose.ROOT / "Dockerfile").read_text()
    assert "\nUSER 10001:10001\n" in text
    assert "USER root" not in text


def test_both_images_hold_licence_and_notice() -> None:
    text = (compose.ROOT / "Dockerfile").read_text()
    for target in ("gateway", "worker"):
        assert f"FROM runtime AS {target}\n" in text
    assert "\nWORKDIR /app\nCOPY LICENSE NOTICE ./\n" in text.partition(" AS runtime\n")[2]


def test_the_context_holds_what_the_dockerfile_copies() -> None:
    ignored = (compose.ROOT / ".dockerignore").read_text().splitlines()
    for line in (compose.ROOT / "Dockerfile").read_text().splitlines():
        if line.startswith("COPY ") and "--from" not in line:
            for source in line.split()[1:-1]:
                assert (compose.ROOT / source).exists()
                assert f"!{source}" in ignored
