"""``koala generate``: a progress bar while the server draws, then files."""

import re
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from koala.client import Client, ServerError

_SUFFIXES = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}


def run(
    url: str,
    request: dict[str, Any],
    output: Path | None,
    console: Console,
    api_key: str | None = None,
) -> list[Path]:
    """Draw, follow and write; the files written.

    Raises:
        ServerError: The server refused or failed, or nobody answers.
        OSError: A file cannot be written.
    """
    if output is not None:
        if output.suffix.lower() not in _SUFFIXES:
            raise ServerError(
                f"{output}: the file name must end in one of {', '.join(_SUFFIXES)}, which says "
                "the format."
            )
        request = {**request, "output_format": _SUFFIXES[output.suffix.lower()]}
    with Client(url, api_key) as client:
        job = client.enqueue(request)
        job = _follow(client, job["id"], console)
        if job["status"] != "completed":
            reason = job["error"]["message"] if job.get("error") else f"it was {job['status']}"
            raise ServerError(f"Job {job['id']} gave no image: {reason}")
        stem = output or Path(f"{_slug(request['prompt'])}.png")
        paths = []
        for i, image in enumerate(job["result"]["data"]):
            path = stem if i == 0 else stem.with_stem(f"{stem.stem}-{i + 1}")
            path.write_bytes(client.fetch(image["url"]))
            console.print(f"{path}  seed {image['seed']}", soft_wrap=True)
            paths.append(path)
        return paths


def _follow(client: Client, job_id: str, console: Console) -> dict[str, Any]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("step {task.completed}/{task.total}"),
        TimeElapsedColumn(),
    )
    job: dict[str, Any] = {}
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("queued", total=None)
        for job in client.follow(job_id):
            ahead = job.get("position")
            text = f"queued, {ahead} ahead" if ahead else str(job["status"]).replace("_", " ")
            steps = job["progress"]
            progress.update(task, description=text, completed=steps["step"], total=steps["steps"])
    return job


def _slug(prompt: str) -> str:
    words = re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")
    return words[:48].strip("-") or "image"
