"""``koala generate`` in a terminal of its own, before the real service."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pexpect
import pytest
from PIL import Image

from tests.proxy import between
from tests.support import Stack

# Enough to be watched, and too much to be waited for.
SOME = ("--steps", "100", "--n", "2")
ENDLESS = ("--steps", "150", "--n", "10")


def terminal(base_url: str, folder: Path, *arguments: str, **env: str) -> pexpect.spawn:
    """The command in a terminal that shows colours and knows nothing of pictures."""
    return pexpect.spawn(
        sys.executable,
        ["-m", "koala", "generate", *arguments, "--url", base_url],
        cwd=str(folder),
        env={**os.environ, "TERM": "xterm-256color", "COLORTERM": "truecolor", **env},
        dimensions=(40, 120),
        timeout=300,
        # Whoever runs the tests in the background ignores Ctrl-C, and children would do so too.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def piped(
    base_url: str, folder: Path, *arguments: str, stdin: str = ""
) -> subprocess.CompletedProcess[str]:
    """The command as a script runs it."""
    return subprocess.run(
        [sys.executable, "-m", "koala", "generate", *arguments, "--url", base_url],
        cwd=folder,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=300,
    )


def end_of(child: pexpect.spawn) -> tuple[int | None, bytes]:
    """Exit code and the rest of the output."""
    child.expect(pexpect.EOF)
    child.close()
    return child.exitstatus, child.before


def newest_jobs(stack: Stack, count: int) -> list[dict[str, object]]:
    jobs: list[dict[str, object]] = httpx.get(
        f"{stack.base_url}/v1/jobs", params={"limit": count}
    ).json()["data"]
    return jobs


def test_a_terminal_shows_steps_the_time_left_and_the_image_on_its_way(
    stack: Stack, tmp_path: Path
) -> None:
    child = terminal(stack.base_url, tmp_path, "a koala", *SOME, "--seed", "7", "-o", "koala.png")
    child.expect(rb"drawing .* step \d+/200 about \d+ s left")
    # Half a block in two colours is two pixels.
    child.expect("\x1b\\[38;2;\\d+;\\d+;\\d+;48;2;\\d+;\\d+;\\d+m▀".encode())
    child.expect(rb"koala.png  seed 7\r\n")
    child.expect(rb"koala-2.png  seed 8\r\n")
    code, finished = end_of(child)
    assert code == 0
    assert "▀".encode() in finished
    assert b"step" not in finished
    assert {path.name for path in tmp_path.iterdir()} == {"koala.png", "koala-2.png"}


@pytest.mark.parametrize(
    ("answers", "picture"),
    [
        pytest.param("\x1b[?62;4c", r"\x1bP[0-9;]*q", id="sixel"),
        pytest.param("\x1b[?62;c\x1b_Gi=1;OK\x1b\\", r"\x1b_Gi=\d+,m=\d", id="kitty"),
    ],
)
def test_a_terminal_that_can_show_pictures_gets_real_ones(
    stack: Stack, tmp_path: Path, answers: str, picture: str
) -> None:
    child = terminal(stack.base_url, tmp_path, "a koala", "--steps", "20")
    # There before they are asked for: a terminal that is slow to answer counts as one that cannot.
    child.send(answers)
    child.expect(picture.encode())
    code, _ = end_of(child)
    assert code == 0


def test_without_previews_none_are_asked_for_or_shown(stack: Stack, tmp_path: Path) -> None:
    child = terminal(stack.base_url, tmp_path, "a koala", *SOME, "--no-preview")
    child.expect(rb"step \d+/200")
    code, rest = end_of(child)
    assert code == 0
    assert "▀".encode() not in rest


def test_ctrl_c_cancels_the_job_on_the_server_and_says_so(stack: Stack, tmp_path: Path) -> None:
    child = terminal(stack.base_url, tmp_path, "a koala", *ENDLESS)
    child.expect(rb"step [1-9]")
    child.sendintr()
    child.expect(rb"Job (job_\w+) was cancelled\.")
    job_id = child.match[1].decode()
    code, _ = end_of(child)
    assert code == 130
    assert httpx.get(f"{stack.base_url}/v1/jobs/{job_id}").json()["status"] == "cancelled"
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_cancels_every_job_of_a_batch(stack: Stack, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a koala\n" * 12)
    child = terminal(stack.base_url, tmp_path, "--batch", "prompts.txt", *ENDLESS)
    child.expect(rb"08 a koala: queued|08 a koala: drawing")
    child.sendintr()
    code, rest = end_of(child)
    assert code == 130
    told = {job.decode() for job in re.findall(rb"Job (job_\w+) was cancelled\.", rest)}
    assert len(told) == 8
    newest = {job["id"]: job["status"] for job in newest_jobs(stack, 8)}
    assert newest == dict.fromkeys(told, "cancelled")


def test_a_second_ctrl_c_leaves_a_server_that_does_not_answer(stack: Stack, tmp_path: Path) -> None:
    with between(stack.base_url) as proxy:
        child = terminal(proxy.base_url, tmp_path, "a koala", *ENDLESS)
        child.expect(rb"step [1-9]")
        proxy.be_silent()
        child.sendintr()
        child.expect(rb"cancelling, Ctrl-C again leaves at once")
        child.sendintr()
        child.expect(rb"Job (job_\w+) goes on\.")
        job_id = child.match[1].decode()
        code, _ = end_of(child)
        assert code == 130
    job = httpx.post(f"{stack.base_url}/v1/jobs/{job_id}/cancel").json()
    assert job["status"] == "cancelled"


def test_a_stream_that_is_cut_is_taken_up_behind_the_last_event(
    stack: Stack, tmp_path: Path
) -> None:
    with between(stack.base_url) as proxy:
        proxy.cut_at(b"event: step")
        done = piped(proxy.base_url, tmp_path, "a koala", "-o", "koala.png")
        asked = [bytes(request) for request in proxy.requests]
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("koala.png  seed ")
    streams = [request for request in asked if b"/events HTTP" in request]
    assert len(streams) == 2
    assert b"Last-Event-ID" in streams[-1]


def test_a_request_whose_answer_is_lost_is_sent_again_and_is_one_job(
    stack: Stack, tmp_path: Path
) -> None:
    before = newest_jobs(stack, 1)
    with between(stack.base_url) as proxy:
        proxy.cut_at(b"202 Accepted")
        done = piped(proxy.base_url, tmp_path, "a koala", "--steps", "4", "-o", "koala.png")
    assert done.returncode == 0, done.stderr
    after = newest_jobs(stack, 2)
    assert [job["id"] for job in after[1:]] == [job["id"] for job in before]


def test_a_batch_writes_numbered_files_in_the_order_of_the_prompts_whatever_fails(
    stack: Stack, tmp_path: Path
) -> None:
    (tmp_path / "prompts.txt").write_text(
        "# animals\na koala on a blue background\n\n  a banana \n" + "x" * 5000 + "\na rocket\n"
    )
    options = ("--batch", "prompts.txt", "-o", "out", "--seed", "7", "--steps", "4", "--n", "2")
    done = piped(stack.base_url, tmp_path, *options)
    assert done.returncode == 1
    [failure] = done.stderr.splitlines()
    assert failure.startswith("koala: 03 xxx")
    assert "prompt" in failure
    assert done.stdout.splitlines()[-1] == "3 of 4 prompts drawn, 1 failed."
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == [
        "01-a-koala-on-a-blue-background-2.png",
        "01-a-koala-on-a-blue-background.png",
        "02-a-banana-2.png",
        "02-a-banana.png",
        "04-a-rocket-2.png",
        "04-a-rocket.png",
    ]
    with Image.open(tmp_path / "out" / names[2]) as image:
        parameters = image.info["parameters"]
    assert parameters.startswith("a banana\n")
    assert "Seed: 8" in parameters


def test_prompts_may_come_from_stdin_and_what_became_of_them_go_out_as_json(
    stack: Stack, tmp_path: Path
) -> None:
    options = ("--batch", "-", "--steps", "4", "--seed", "7", "--json")
    done = piped(stack.base_url, tmp_path, *options, stdin=f"a koala\n{'x' * 5000}\n")
    assert done.returncode == 1
    drawn, failed = sorted(map(json.loads, done.stdout.splitlines()), key=lambda x: x["status"])
    assert drawn["prompt"] == "a koala"
    assert drawn["files"] == [{"path": "01-a-koala.png", "seed": 7}]
    assert httpx.get(f"{stack.base_url}/v1/jobs/{drawn['job_id']}").json()["seed"] == 7
    assert (failed["status"], failed["job_id"], failed["files"]) == ("failed", None, [])
    assert "prompt" in failed["error"]
