"""``koala generate`` at a gateway that asks for keys, is full, or fails."""

import asyncio
import http.server
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from rich.console import Console
from typer.testing import CliRunner

from koala import patience
from koala.cli import app
from koala.client import Busy, Client
from koala.commands.generate.pieces import Piece
from koala.commands.generate.run import run
from koala.patience import ServerError
from koala.settings import Settings
from tests.proxy import Proxy, between
from tests.service.fakes import FakeWorker, Served, picture, serving, wait_until
from tests.service.keyed import asking, make_key, secret_of, with_keys


def generate(served: Served, folder: Path, *options: str, **env: str) -> tuple[int, str]:
    """Exit code and stderr of a run."""
    process = start(served, folder, "a koala", "-o", "koala.png", "--force", *options, **env)
    _, error = process.communicate(timeout=240)
    return process.returncode, error.strip()


def start(served: Served, folder: Path, *arguments: str, **env: str) -> subprocess.Popen[str]:
    """The command, running."""
    return subprocess.Popen(
        [sys.executable, "-m", "koala", "generate", *arguments, "--url", served.base_url],
        env={**os.environ, "COLUMNS": "200", **env},
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


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
        thread.join(120)


def test_it_shows_its_key_to_no_other_server(
    settings: Settings, elsewhere: tuple[str, list[str | None]]
) -> None:
    url, received = elsewhere

    async def fetch(base_url: str) -> bytes:
        async with Client(base_url, secret_of("alice")) as client:
            await client.enqueue({"prompt": "a koala"})
            return await client.fetch(f"{url}/v1/images/x.png")

    with asking(settings, public_url=url) as served:
        assert asyncio.run(fetch(served.base_url)) == picture("png")
    assert received == [None]


def test_a_job_that_fails_is_one_line_with_the_reason(
    served: Served, worker: FakeWorker, tmp_path: Path
) -> None:
    process = start(served, tmp_path, "a koala")
    job_id = worker.take()
    worker.fail(job_id)
    out, error = process.communicate(timeout=240)
    assert process.returncode == 1
    assert error == f"koala: Job {job_id} gave no image: It does not fit.\n"
    assert out == ""


def test_a_batch_keeps_several_jobs_at_the_server_but_not_all(
    served: Served, worker: FakeWorker, tmp_path: Path
) -> None:
    (tmp_path / "prompts.txt").write_text("a koala\n" * 12)
    process = start(served, tmp_path, "--batch", "prompts.txt")
    wait_until(lambda: len(worker.waiting()) == 8)
    worker.finish(worker.take())
    wait_until(lambda: len(set(worker.waiting())) == 8)
    with worker.working():
        out, error = process.communicate(timeout=240)
    assert process.returncode == 0, error
    assert out.splitlines()[-1] == "12 of 12 prompts drawn."


def test_a_batch_waits_as_long_as_a_full_queue_says(
    settings: Settings, worker: FakeWorker, tmp_path: Path
) -> None:
    (tmp_path / "prompts.txt").write_text("a koala\n" * 4)
    with serving(settings.model_copy(update={"max_queued": 2})) as served:
        process = start(served, tmp_path, "--batch", "prompts.txt")
        refused = 'koala_jobs_submitted_total{outcome="full"}'
        wait_until(lambda: served.metric(refused) == 2)
        with worker.working():
            out, error = process.communicate(timeout=240)
    assert process.returncode == 0, error
    assert out.splitlines()[-1] == "4 of 4 prompts drawn."


def test_a_batch_ends_early_where_every_prompt_would_fail(
    settings: Settings, tmp_path: Path
) -> None:
    (tmp_path / "prompts.txt").write_text("a koala\n" * 12)
    with asking(settings) as served:
        process = start(served, tmp_path, "--batch", "prompts.txt")
        out, error = process.communicate(timeout=240)
    assert process.returncode == 1
    [line] = error.splitlines()
    assert "Give yours with --api-key" in line
    assert out.splitlines()[-1] == "0 of 12 prompts drawn, 8 failed, 4 not tried."


def test_a_server_that_does_not_come_back_is_given_up(
    served: Served, worker: FakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "_PATIENCE_SECONDS", 0.1)
    monkeypatch.setattr(patience, "_PAUSE_SECONDS", 0.1)

    async def follow(proxy: Proxy) -> str:
        async with Client(proxy.base_url) as client:
            job_id = await client.enqueue({"prompt": "a koala"})
            async for event in client.follow(job_id):
                assert event["type"] in ("queued", "position")
                # Joins threads.
                await asyncio.to_thread(proxy.close)
            return job_id

    with between(served.base_url) as proxy, pytest.raises(ServerError) as lost:
        asyncio.run(follow(proxy))
    [job_id] = worker.waiting()
    assert str(lost.value).startswith(f"{proxy.base_url} was lost and does not come back: ")
    assert str(lost.value).endswith(f"The job {job_id} goes on.")


HOSTILE = "\x1b[31m\x9b\u202e[bold]x[/bold] [link=http://evil.example]y[/link] :smile:\nkoala: z"


@pytest.fixture
def hostile() -> Iterator[str]:
    """Address of a gateway that wants the terminal: it refuses `a banana` and draws the rest."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            if b"banana" in self.rfile.read(int(self.headers["Content-Length"])):
                self.answer(400, {"error": {"message": HOSTILE}})
            else:
                self.answer(202, {"id": "job_1"})

        def do_GET(self) -> None:
            if not self.path.endswith("/events"):
                self.answer(200, {})
                return
            data = [{"url": "/v1/image", "seed": 7}]
            result = {"warnings": [HOSTILE], "data": data}
            job = {"status": "completed", "error": None, "result": result}
            event = {"type": "completed", "job": job}
            body = f"event: completed\ndata: {json.dumps(event)}\n\n".encode()
            self.answer(200, body, "text/event-stream")

        def log_message(self, *_: object) -> None:
            """Keep quiet."""

        def answer(self, status: int, body: object, kind: str = "application/json") -> None:
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join(120)


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_what_a_server_says_gives_the_terminal_no_orders(
    hostile: str, tmp_path: Path, options: list[str]
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "koala", "generate", "--batch", "-", "--url", hostile, *options],
        cwd=tmp_path,
        input="a \x1b[31m koala\na \x1b[31m banana\n",
        capture_output=True,
        text=True,
        timeout=240,
    )
    written = done.stdout + done.stderr
    assert written.isascii()
    assert written.replace("\n", "").isprintable()
    shown = r"\x1b[31m\x9b\u202e[bold]x[/bold] [link=http://evil.example]y[/link] :smile:\nkoala: z"
    if not options:
        assert set(done.stderr.splitlines()) == {
            rf"koala: 01 a \x1b[31m koala: {shown}",
            rf"koala: 02 a \x1b[31m banana: {shown}",
        }
        assert done.stdout.splitlines()[0] == "01-a-31m-koala.png  seed 7"


@contextmanager
def answering(
    admitted: bytes, told: bytes = b"", *, status: int = 202, headers: Mapping[str, str] = {}
) -> Iterator[str]:
    """Address of a program that answers each POST with `admitted`, each GET with `told`."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.answer(status, admitted)

        def do_GET(self) -> None:
            self.answer(200, told)

        def log_message(self, *_: object) -> None:
            """Keep quiet."""

        def answer(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", "text/event-stream")
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join(10)


def told(kind: str, **data: object) -> bytes:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **data})}\n\n".encode()


def ended(result: object, **job: object) -> bytes:
    return told("completed", job={"status": "completed", "error": None, "result": result} | job)


def drawn(*data: object) -> bytes:
    return ended({"warnings": [], "data": data})


ADMITTED = b'{"id": "job_1"}'


@pytest.mark.parametrize(
    ("admitted", "events", "says"),
    [
        (b"<html>", b"", "Invalid JSON"),
        (b"[" * 100_000, b"", "Invalid JSON"),
        (b"[]", b"", "Input should be an object"),
        (b"{}", b"", "id: Field required"),
        (b'{"id": 5}', b"", "id: Input should be a valid string"),
        (b'{"id": "../a"}', b"", "id: String should match"),
        (b'{"id": "a\\nb"}', b"", "id: String should match"),
        (ADMITTED, b"event: step\ndata: steps\n\n", "Invalid JSON"),
        (ADMITTED, b"event: step\ndata: {}\n\n", "type: Field required"),
        (ADMITTED, told("step", step=1, steps="many"), "steps: Input should be a valid number"),
        (ADMITTED, told("step", step=1, steps=float("nan")), "steps: Input should be a finite"),
        (ADMITTED, told("step", step=1), "steps is missing"),
        (ADMITTED, told("queued", eta_seconds="soon"), "eta_seconds: Input should be"),
        (ADMITTED, told("position", position="first"), "position: Input should be"),
        (ADMITTED, told("completed"), "job is missing"),
        (ADMITTED, told("failed", job={"status": "failed", "error": "e"}), "job.error: "),
        (ADMITTED, told("failed"), "error is missing"),
        (ADMITTED, ended(None), "job: the job is completed and has no result"),
        (ADMITTED, ended({"warnings": None, "data": []}), "job.result.warnings: "),
        (ADMITTED, ended({"warnings": [], "data": None}), "job.result.data: "),
        (ADMITTED, drawn({"seed": 1}), "job.result.data.0.url: Field required"),
        (ADMITTED, drawn({"url": "/a", "seed": "1"}), "job.result.data.0.seed: "),
        (ADMITTED, drawn({"url": "http://[::/a", "seed": 1}), "names an image that cannot be"),
        (ADMITTED, drawn({"url": "file:///a", "seed": 1}), "names an image that cannot be"),
        (ADMITTED, drawn({"url": "http://a:99999/", "seed": 1}), "there is no port 99999"),
    ],
)
def test_an_answer_that_no_gateway_gives_is_one_line_that_names_the_field(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    admitted: bytes,
    events: bytes,
    says: str,
) -> None:
    with answering(admitted, events) as url:
        assert draw(url, tmp_path / "a.png") == 1
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("koala: http://127.0.0.1:")
    assert says in line
    assert list(tmp_path.iterdir()) == []


def draw(url: str, path: Path) -> int:
    """Exit code of a run in this process."""
    piece = Piece("a koala", {"prompt": "a koala"}, path)
    return run([piece], url, None, Console(), preview=False, as_json=False)


def test_a_redirect_is_told_with_where_it_leads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with answering(b"", status=308, headers={"Location": "https://koala.example/"}) as url:
        assert draw(url, tmp_path / "a.png") == 1
    [line] = capsys.readouterr().err.splitlines()
    assert line.endswith("answered 308 and refers to https://koala.example/.")


@pytest.mark.parametrize("seconds", ["9" * 400, "86400"])
def test_a_server_that_is_busy_for_long_is_asked_again_within_an_hour(seconds: str) -> None:
    async def enqueue(url: str) -> None:
        async with Client(url) as client:
            await client.enqueue({"prompt": "a koala"})

    with (
        answering(b"{}", status=429, headers={"Retry-After": seconds}) as url,
        pytest.raises(Busy) as busy,
    ):
        asyncio.run(enqueue(url))
    assert busy.value.retry_after == 3600


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--url", "127.0.0.1:8000"], "--url: 127.0.0.1:8000: it does not begin with http://"),
        (["--url", "http://[::"], "--url: http://[::: Invalid port"),
        (["--url", "http://127.0.0.1:99999"], "there is no port 99999"),
        (["--api-key", "secret\n"], "--api-key: it has characters that no key has"),
        (["--guidance", "nan"], "guidance_scale: nan is no number."),
        (["--lora", "style:inf"], "--lora: style:inf: the weight 'inf' is no number."),
        (["--negative", "\udcff"], "negative_prompt: it is not text in UTF-8."),
        (["--n", "1000000000"], "koala.png exists: "),
        (["-o", "a" * 300 + ".png"], "File name too long"),
    ],
)
def test_an_argument_that_cannot_be_meant_is_one_line_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    # It leads to itself, and is there.
    Path("koala.png").symlink_to("koala.png")
    named = ["-o", "koala.png"] if "--n" in options else []
    done = CliRunner().invoke(app, ["generate", "a koala", *named, *options])
    assert done.exit_code == 1
    [line] = done.stderr.splitlines()
    assert says in line


def finished(process: subprocess.Popen[str]) -> tuple[int, list[str], list[str]]:
    """Exit code, and the lines of stdout and stderr."""
    out, error = process.communicate(timeout=240)
    return process.returncode, out.splitlines(), error.splitlines()


def test_a_second_run_writes_over_nothing(
    served: Served, worker: FakeWorker, tmp_path: Path
) -> None:
    (tmp_path / "a-koala.png").write_bytes(b"precious")
    with worker.working():
        first = finished(start(served, tmp_path, "a koala", "--seed", "7"))
        second = finished(start(served, tmp_path, "a koala", "--seed", "8", "--n", "2"))
        forced = finished(start(served, tmp_path, "a koala", "--seed", "5", "--force"))
    assert first == (0, ["a-koala-2.png  seed 7"], [])
    assert second == (0, ["a-koala-3.png  seed 8", "a-koala-4.png  seed 9"], [])
    assert forced == (0, ["a-koala.png  seed 5"], [])
    assert (tmp_path / "a-koala.png").read_bytes() == picture("png")


def test_a_target_that_will_not_do_is_refused_before_anything_is_drawn(
    served: Served, worker: FakeWorker, tmp_path: Path
) -> None:
    (tmp_path / "koala.png").write_bytes(b"precious")
    for target, says in (
        ("koala.png", "koala.png exists: name another file, or give --force to write over it."),
        ("koala.png/a.png", "Not a directory"),
        ("/proc/koala.png", "/proc: "),
    ):
        code, _, [line] = finished(start(served, tmp_path, "a koala", "-o", target))
        assert code == 1
        assert says in line
    assert worker.waiting() == []
    assert (tmp_path / "koala.png").read_bytes() == b"precious"


def test_a_folder_that_is_missing_is_made(
    served: Served, worker: FakeWorker, tmp_path: Path
) -> None:
    with worker.working():
        done = finished(start(served, tmp_path, "a koala", "-o", "missing/x.png", "--seed", "7"))
    assert done == (0, ["missing/x.png  seed 7"], [])


def test_an_image_that_cannot_be_written_is_not_lost(
    served: Served, worker: FakeWorker, tmp_path: Path
) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "prompts.txt").write_text("a koala\n" * 12)
    process = start(served, folder, "--batch", "prompts.txt")
    wait_until(lambda: len(worker.waiting()) == 8, 60)
    # As on a disk that is full by now: no file gets longer than this.
    subprocess.run(["prlimit", "--fsize=16", f"--pid={process.pid}"], check=True)
    with worker.working():
        code, out, error = finished(process)
    assert code == 1
    # Those under way are told of, the others would fare alike.
    assert out[-1].startswith("0 of 12 prompts drawn, 8 failed, 4 not tried")
    assert len(error) == 8
    for line in error:
        assert "a-koala.png: File too large. What was drawn is at " in line
        image, job = re.findall(r"http://[^\s)]+", line)
        assert httpx.get(image).content == picture("png")
        assert httpx.get(job).json()["status"] == "completed"
    assert [path.name for path in folder.iterdir()] == ["prompts.txt"]
