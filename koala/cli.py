"""The ``koala`` command."""

import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer
from rich.table import Table

from koala import __version__, compiled_code, processors
from koala.commands import keys
from koala.console import fail, load_settings, out, say
from koala.settings import Settings

app = typer.Typer(
    name="koala",
    help="Text-to-image serving for the KOALA models. Settings come from KOALA_* variables.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.add_typer(keys.app, name="keys")
Host = Annotated[str | None, typer.Option(help="Address to listen on (KOALA_HOST).")]
Port = Annotated[int | None, typer.Option(help="Port to listen on (KOALA_PORT).")]
Model = Annotated[str | None, typer.Option(help="Model to serve (KOALA_MODEL).")]


def quieten() -> None:
    """Keep diffusers and transformers from speaking at import, of parts that we do not use."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")


def prepare_torch(settings: Settings) -> None:
    """Set what torch and what builds on it read of the environment when they are imported.

    Raises:
        typer.Exit: What is compiled cannot be kept where only this user can write.
    """
    quieten()
    processors.configure(os.environ)
    if settings.compile:
        try:
            compiled_code.configure(os.environ)
        except compiled_code.NoPlace as error:
            raise fail(f"KOALA_COMPILE: {error}.") from None


def missing(error: ModuleNotFoundError) -> Exception:
    """Say which extra brings a worker's library; raise what this returns."""
    if str(error.name).startswith(("koala", "worker")):
        return error
    return fail(f"A worker needs {error.name}: run `pip install 'koala-serve[worker]'`.")


def leave(number: int, frame: FrameType | None) -> None:
    """End at once: what still starts holds nothing, and its downloads go on next time."""
    # As the first process of a container it would be spared a signal that it does not heed; and
    # an orderly end would wait for the threads that download.
    os._exit(0)


@app.callback(invoke_without_command=True)
def main(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Text-to-image serving for the KOALA models."""
    if version:
        out.print(f"koala-serve {__version__}")
        raise typer.Exit


@app.command()
def up(
    host: Host = None,
    port: Port = None,
    model: Model = None,
    workers: Annotated[int | None, typer.Option(help="Workers to start (KOALA_WORKERS).")] = None,
) -> None:
    """Run everything: embedded server, workers and gateway; Ctrl-C ends all."""
    from koala.commands.up import run

    raise typer.Exit(run(load_settings(host=host, port=port, model=model, workers=workers)))


@app.command()
def serve(host: Host = None, port: Port = None, model: Model = None) -> None:
    """Run the gateway."""
    from koala import logs, tracing
    from service.run import run

    settings = load_settings(host=host, port=port, model=model)
    logs.configure(settings)
    raise typer.Exit(run(settings, tracing.tracer_provider("koala-gateway", os.environ)))


@app.command()
def work(model: Model = None) -> None:
    """Run one worker."""
    from koala import logs, tracing

    settings = load_settings(model=model)
    logs.configure(settings)
    prepare_torch(settings)
    signal.signal(signal.SIGTERM, leave)
    try:
        from worker.run import run
    except ModuleNotFoundError as error:
        raise missing(error) from None
    raise typer.Exit(run(settings, tracing.tracer_provider("koala-worker", os.environ)))


@app.command()
def generate(
    prompt: Annotated[str | None, typer.Argument(help="What to draw.")] = None,
    batch: Annotated[
        str | None, typer.Option(help="File of prompts, one a line; `-`: stdin.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="File to write; `-2`, ... is added for n. With --batch a folder."
        ),
    ] = None,
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="Write over files that are there. Otherwise one that -o names must not exist, and "
            "names made from prompts get a number.",
        ),
    ] = False,
    n: Annotated[int, typer.Option("--n", "-n", help="Number of images, of each prompt.")] = 1,
    size: Annotated[str | None, typer.Option(help="WIDTHxHEIGHT in pixels.")] = None,
    steps: Annotated[int | None, typer.Option(help="Denoising steps.")] = None,
    guidance: Annotated[float | None, typer.Option(help="Guidance scale.")] = None,
    negative: Annotated[str | None, typer.Option(help="What to keep out of the image.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of each prompt's first image.")] = None,
    scheduler: Annotated[
        str | None, typer.Option(help="Such as euler_a or dpm++_2m_karras; else the model's own.")
    ] = None,
    preview: Annotated[
        bool | None,
        typer.Option(
            "--preview/--no-preview",
            help="Show images in the terminal on their way.  \\[default: where it can]",
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print a line of JSON for each prompt instead.")
    ] = False,
    lora: Annotated[
        list[str] | None,
        typer.Option(help="A LoRA, NAME or NAME:WEIGHT; can be given again."),
    ] = None,
    url: Annotated[
        str, typer.Option(help="The gateway.", envvar="KOALA_URL")
    ] = "http://127.0.0.1:8000",
    api_key: Annotated[
        str | None, typer.Option(help="Your API key, if one is needed.", envvar="KOALA_API_KEY")
    ] = None,
) -> None:
    """Draw images on a running server and write them to files; Ctrl-C cancels."""
    from koala.commands.generate import pieces
    from koala.commands.generate.run import run

    request: dict[str, object] = {
        "n": n,
        "size": size,
        "num_inference_steps": steps,
        "guidance_scale": guidance,
        "negative_prompt": negative,
        "seed": seed,
        "scheduler": scheduler,
    }
    try:
        request["lora"] = [pieces.parse_lora(text) for text in lora] if lora else None
        request = {name: value for name, value in request.items() if value is not None}
        work = pieces.collect(prompt, batch, request, output, force=force)
        code = run(work, url, api_key, out, preview=preview, as_json=as_json)
    except pieces.UsageError as error:
        raise fail(str(error)) from None
    raise typer.Exit(code)


@app.command()
def models() -> None:
    """List the models known by name."""
    from koala.catalogue import CATALOGUE

    table = Table(box=None, header_style="bold")
    for column in ("name", "size", "steps", "guidance", "download", "source"):
        table.add_column(column, no_wrap=column == "name", overflow="fold")
    for card in CATALOGUE:
        table.add_row(
            card.id,
            f"{card.native_side} px",
            str(card.steps),
            f"{card.guidance_scale:g}",
            f"{card.download_bytes / 1e9:.1f} GB" if card.download_bytes else "",
            "in this package" if Path(card.source).is_absolute() else card.source,
        )
    out.print(table)
    out.print("`koala download NAME` fetches one, and says what its licence is.")
    out.print("Any other SDXL-shaped diffusers folder or hub id works too: set KOALA_MODEL to it.")


@app.command()
def download(
    model: Annotated[str, typer.Argument(help="A name from `koala models`, or a hub id.")],
    revision: Annotated[
        str | None,
        typer.Option(
            help="Commit, branch or tag, if not the catalogue's.", envvar="KOALA_MODEL_REVISION"
        ),
    ] = None,
) -> None:
    """Fetch a model, or what is missing of it; workers then start without the hub."""
    try:
        from koala.commands.download import CannotDownload, run
    except ModuleNotFoundError as error:
        raise missing(error) from None
    try:
        run(model, revision, out)
    except CannotDownload as error:
        raise fail(str(error)) from None


@app.command()
def simulate(
    profile: Annotated[
        str | None, typer.Option(help="A GPU and model with published latencies.")
    ] = None,
    curve: Annotated[
        Path | None, typer.Option(help="A file with curves, as `koala measure` writes.")
    ] = None,
    clients: Annotated[
        str | None, typer.Option(help="Closed loops: numbers of clients.  \\[default: 1,2,4,8,16]")
    ] = None,
    rate: Annotated[
        str | None, typer.Option(help="Poisson arrivals instead: requests a minute, e.g. 10,20.")
    ] = None,
    steps: Annotated[str, typer.Option(help="Denoising steps: N or LOW..HIGH.")] = "10",
    guidance: Annotated[str, typer.Option(help="Guidance scale: N or LOW..HIGH.")] = "3.5",
    size: Annotated[
        str | None, typer.Option(help="WIDTHxHEIGHT, or a mix: 1024x1024:3,512x512:1.")
    ] = None,
    n: Annotated[int, typer.Option("--n", "-n", help="Images of a request.")] = 1,
    gpus: Annotated[int, typer.Option(help="GPUs on one queue.")] = 1,
    strategy: Annotated[
        str | None, typer.Option(help="step-level,whole-batch,one-by-one or some of them.")
    ] = None,
    max_rows: Annotated[
        int | None, typer.Option(help="As KOALA_MAX_BATCH_ROWS: most rows of a U-Net call.")
    ] = None,
    target_step_ms: Annotated[
        float | None, typer.Option(help="As KOALA_TARGET_STEP_MS: longest U-Net call.")
    ] = None,
    requests: Annotated[int, typer.Option(help="Requests of each simulation.")] = 400,
    seed: Annotated[int, typer.Option(help="Seed of requests and gaps.")] = 0,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Plot to write: .svg, .png or .pdf.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead.")] = False,
) -> None:
    """Plan throughput and latency for a GPU you do not have."""
    from worker.simulation.options import OptionError, Options
    from worker.simulation.run import run

    options = Options(
        profile=profile,
        curve=curve,
        clients=clients,
        rate=rate,
        steps=steps,
        guidance=guidance,
        size=size,
        n=n,
        gpus=gpus,
        strategy=strategy,
        max_rows=max_rows,
        target_step_ms=target_step_ms,
        requests=requests,
        seed=seed,
    )
    try:
        run(options, output, as_json, out)
    except OptionError as error:
        raise fail(str(error)) from None


@app.command()
def plan(
    model: Annotated[str, typer.Argument(help="A name from `koala models`, or a folder.")],
    vram: Annotated[str | None, typer.Option(help="The card's memory.  \\[default: 8GiB]")] = None,
    card: Annotated[
        str | None, typer.Option(help="A card with published latencies: 3060ti, 2080ti or 4090.")
    ] = None,
    size: Annotated[
        str | None, typer.Option(help="WIDTHxHEIGHT in pixels.  \\[default: the native size]")
    ] = None,
    dtype: Annotated[str, typer.Option(help="float16, bfloat16 or float32.")] = "float16",
    attention: Annotated[
        str, typer.Option(help="fused (flash, memory-efficient) or math.")
    ] = "fused",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead.")] = False,
) -> None:
    """Predict what a model takes of a card's memory, and what fits, without the card."""
    quieten()
    try:
        from worker.planning.options import OptionError, Options
        from worker.planning.run import run
    except ModuleNotFoundError as error:
        raise missing(error) from None
    options = Options(model, vram=vram, card=card, size=size, dtype=dtype, attention=attention)
    try:
        run(options, as_json, out)
    except OptionError as error:
        raise fail(str(error)) from None


@app.command()
def measure(
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write.")],
    model: Model = None,
    size: Annotated[
        list[str] | None, typer.Option(help="WIDTHxHEIGHT in pixels; may be repeated.")
    ] = None,
) -> None:
    """Measure this machine's step-time curve for `koala simulate --curve`."""
    settings = load_settings(model=model)
    sizes = []
    for text in size or []:
        width, _, height = text.partition("x")
        if not (width.isdecimal() and height.isdecimal()):
            raise fail(f"--size: WIDTHxHEIGHT in pixels, got {text!r}.")
        sizes.append((int(width), int(height)))
    prepare_torch(settings)
    try:
        from worker.measure import CannotMeasure, run
    except ModuleNotFoundError as error:
        raise missing(error) from None
    try:
        curves = run(settings, sizes, output)
    except CannotMeasure as error:
        raise fail(str(error)) from None
    except OSError as error:
        raise fail(f"--output: {output}: {error.strerror}") from None
    say(f"{output}: {curves.name}")


@app.command()
def doctor() -> None:
    """Say what is reachable, what is installed and what fits."""
    from koala.commands.doctor import run

    if not run(load_settings(), out):
        sys.exit(1)
