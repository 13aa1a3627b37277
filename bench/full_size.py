"""``python -m bench.full_size``: a full-size model with random weights, served and drawn with.

The published weights are not needed for what this shows: that a folder of their layout and size
loads in the real worker and draws over HTTP, how long that takes and how much memory. Linux only.
"""

import os
import signal
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import Annotated, Final

import httpx
import typer
from PIL import Image
from rich.console import Console

from bench.processes import ContenderFailed, free_port
from bench.scrape import peak_memory, scrape
from bench.servers import Koala
from distill.random_checkpoint import DTYPES, make
from koala.architecture import UNETS

# Loading on a slow disk, and the measurement of the batch at the start.
_READY_SECONDS: Final = 900.0
_ANSWER_SECONDS: Final = 1800.0
_SETTING: Final = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)


class Failed(Exception):
    """It cannot be tried here, or did not work; the message says why."""


@dataclass(frozen=True, slots=True)
class Record:
    """What was measured. Sizes are in bytes, times in seconds.

    ``ready_seconds`` count from the start of the processes, the worker's measurement of its batch
    included; a step is one U-Net call of a guided image, two rows. ``peak_bytes`` is the largest
    resident set of the worker, load included.
    """

    model: str
    dtype: str
    side: int
    steps: int
    threads: int
    weight_bytes: int
    ready_seconds: float
    step_seconds: float
    decode_seconds: float
    peak_bytes: int

    def line(self) -> str:
        """A row of the table in docs/models.md."""
        gib = 2**30
        return (
            f"| {self.model} | {self.dtype} | {self.weight_bytes / gib:.2f} GiB "
            f"| {self.ready_seconds:.0f} s | {self.peak_bytes / gib:.1f} GiB "
            f"| {self.step_seconds:.1f} s | {self.decode_seconds:.1f} s |"
        )


@app.command()
def main(
    models: Annotated[list[str], typer.Argument(help="Of koala-700m, koala-1b, sdxl.")],
    dtype: Annotated[str, typer.Option(help="fp32, bf16 or fp16.")] = "bf16",
    side: Annotated[int, typer.Option(help="Pixels of either side.")] = 256,
    steps: Annotated[int, typer.Option(min=1, help="Denoising steps.")] = 4,
    threads: Annotated[int, typer.Option(min=1, help="Torch threads of the worker.")] = 1,
    narrow: Annotated[int, typer.Option(min=1, help="Divides all widths; 1: full size.")] = 1,
) -> None:
    """Exit code 0: each was loaded and drew an image."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    out.print("| model | dtype | weights | ready after | peak memory | step | decode |")
    out.print("| --- | --- | --- | --- | --- | --- | --- |")
    for model in models:
        try:
            record = _try(model, dtype, side, steps, threads, narrow)
        except (Failed, ContenderFailed, OSError, httpx.HTTPError, ValueError) as error:
            err.print(f"{model}: {error}", style="red", markup=False)
            raise typer.Exit(1) from None
        out.print(record.line(), markup=False)
        err.print(str(asdict(record)), markup=False)


def _try(model: str, dtype: str, side: int, steps: int, threads: int, narrow: int) -> Record:
    if model not in UNETS or dtype not in DTYPES:
        raise Failed(f"know {', '.join(UNETS)} as {', '.join(DTYPES)}")
    with tempfile.TemporaryDirectory(prefix="koala-full-size-") as folder:
        checkpoint = Path(folder) / model
        make(model, checkpoint, DTYPES[dtype], side=side, narrow=narrow)
        weights = sum(path.stat().st_size for path in checkpoint.glob("*/*.safetensors"))
        _check_memory(weights)
        metrics_port = free_port()
        settings = {
            "KOALA_MODEL": str(checkpoint),
            "KOALA_DEVICE": "cpu",
            "KOALA_DTYPE": _SETTING[dtype],
            "KOALA_METRICS_PORT": str(metrics_port),
            "KOALA_SYNC_TIMEOUT": str(_ANSWER_SECONDS),
            "KOALA_JOB_TIMEOUT": str(int(_ANSWER_SECONDS)),
        }
        began = time.monotonic()
        # One guided image is all that is drawn, so no more rows need to be measured.
        server = Koala(Path(folder) / "data", threads, rows=2, settings=settings)
        try:
            server.wait_until_ready(_READY_SECONDS)
            ready = time.monotonic() - began
            _draw(server.address.base_url, side, steps)
            peak = peak_memory(server.pids["worker"])
            seen = scrape(f"http://127.0.0.1:{metrics_port}/metrics")
        finally:
            server.stop()
    return Record(
        model=model,
        dtype=dtype,
        side=side,
        steps=steps,
        threads=threads,
        weight_bytes=weights,
        ready_seconds=ready,
        step_seconds=_mean(seen, "koala_unet_step_seconds"),
        decode_seconds=_mean(seen, "koala_decode_seconds"),
        peak_bytes=peak,
    )


def _mean(seen: Mapping[str, float], name: str) -> float:
    return seen[f"{name}_sum"] / seen[f"{name}_count"]


def _check_memory(weights: int) -> None:
    pages, page = os.sysconf("SC_AVPHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    cached = next(
        int(line.split()[1]) * 1024
        for line in Path("/proc/meminfo").read_text().splitlines()
        if line.startswith("Cached:")
    )
    # Weights, activations of a small image, libraries.
    if 1.5 * weights + 2**31 > pages * page + cached:
        raise Failed(f"too little memory for {weights / 2**30:.1f} GiB of weights")


def _draw(base_url: str, side: int, steps: int) -> None:
    """Draw one guided image, fetch it and look at it."""
    request = {
        "prompt": "a koala in a tree",
        "negative_prompt": "blurry",
        "size": f"{side}x{side}",
        "num_inference_steps": steps,
        "guidance_scale": 3.5,
        "seed": 0,
    }
    with httpx.Client(base_url=base_url, timeout=_ANSWER_SECONDS, trust_env=False) as http:
        answer = http.post("/v1/images/generations", json=request)
        if answer.status_code != 200:
            raise Failed(f"status {answer.status_code}: {answer.text}")
        content = http.get(answer.json()["data"][0]["url"]).raise_for_status().content
    with Image.open(BytesIO(content)) as image:
        if image.size != (side, side):
            raise Failed(f"drew {image.size}")
        darkest, brightest = image.convert("L").getextrema()
        if darkest == brightest:
            raise Failed("drew one colour only")


if __name__ == "__main__":
    app()
