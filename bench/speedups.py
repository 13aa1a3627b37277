"""``python -m bench.speedups``: each speed-up against plain fp32, interleaved, as ratios."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Annotated, Any, Final, TypeAlias

import numpy as np
import torch
import typer
from PIL import Image
from rich.console import Console
from rich.table import Table

from koala.catalogue import DEMO_FOLDER, resolve
from worker.engine import Engine, Failed, Finished, ResidentPipeline, SampleRequest, SpeedUps
from worker.engine.speedups import cpu_computes

Maker: TypeAlias = Callable[[ResidentPipeline, int], Callable[[], object]]

_SIDE: Final = 64
_PLAIN: Final = "plain"
_CONFIGURATIONS: Final = {
    _PLAIN: ("float32", SpeedUps()),
    "channels_last": ("float32", SpeedUps(channels_last=True)),
    "fuse_qkv": ("float32", SpeedUps(fuse_qkv=True)),
    "compile": ("float32", SpeedUps(compile=True)),
    "all, float32": ("float32", SpeedUps(channels_last=True, fuse_qkv=True, compile=True)),
    "bfloat16": ("bfloat16", SpeedUps()),
    "bfloat16, channels_last": ("bfloat16", SpeedUps(channels_last=True)),
    "bfloat16, compile": ("bfloat16", SpeedUps(compile=True)),
}


def load(name: str) -> ResidentPipeline:
    """The demo model on the CPU, with the speed-ups called ``name``."""
    dtype, speed_ups = _CONFIGURATIONS[name]
    return ResidentPipeline.load(
        DEMO_FOLDER,
        device="cpu",
        dtype=dtype,
        scheduler_overrides=resolve("koala-demo").scheduler_overrides,
        speed_ups=speed_ups,
    )


def unet_call(pipeline: ResidentPipeline, rows: int) -> Callable[[], object]:
    """A U-Net call of ``rows`` rows at 64 px, each at a timestep of its own."""
    shape = pipeline.latent_shape(_SIDE, _SIDE)
    latents = torch.randn(rows, *shape, generator=torch.Generator().manual_seed(0))
    prompt_embeds, pooled = pipeline.encode_prompts([f"{i} koalas" for i in range(rows)])
    time_ids = torch.tensor([[_SIDE, _SIDE, 0, 0, _SIDE, _SIDE]] * rows, dtype=pipeline.dtype)
    timesteps = torch.linspace(1, 999, rows)
    return lambda: pipeline.predict_noise(
        latents.to(pipeline.dtype), timesteps, prompt_embeds, pooled, time_ids
    )


def decode_call(pipeline: ResidentPipeline, images: int) -> Callable[[], object]:
    """A call of the VAE's decoder for ``images`` images of 64 px."""
    shape = pipeline.latent_shape(_SIDE, _SIDE)
    latents = torch.randn(images, *shape, generator=torch.Generator().manual_seed(0))
    return lambda: pipeline.decode(latents)


@torch.inference_mode()
def interleaved(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, Any]:
    """Each call once per round; milliseconds, and the median of the rounds' ratios to plain."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
        call()
    for _ in range(rounds):
        for name, call in calls.items():
            start = clock()
            call()
            seconds[name].append(clock() - start)
    return {
        name: {
            "ms": 1000 * median(spent),
            "speed": median(p / s for p, s in zip(seconds[_PLAIN], spent, strict=True)),
        }
        for name, spent in seconds.items()
    }


def draw(pipeline: ResidentPipeline) -> np.ndarray[Any, Any]:
    """Four images of 10 steps, drawn together: (4, 64, 64, 3), 0 to 255.

    Raises:
        RuntimeError: An image failed.
    """
    engine = Engine(pipeline, max_rows=8)
    for i, animal in enumerate(("koala", "cat", "frog", "owl")):
        engine.add(
            SampleRequest(
                key=str(i),
                prompt=f"a {animal} on a blue background",
                negative_prompt=None,
                width=_SIDE,
                height=_SIDE,
                num_inference_steps=10,
                guidance_scale=3.5,
                seed=i,
            )
        )
    images: dict[object, Image.Image] = {}
    while not engine.is_idle:
        for event in engine.step():
            if isinstance(event, Failed):
                raise RuntimeError(f"an image failed: {event.error}")
            if isinstance(event, Finished):
                images[event.key] = event.image
    return np.stack([np.asarray(images[str(i)], np.int16) for i in range(len(images))])


def measure(names: list[str], rows: list[int], rounds: int) -> dict[str, dict[str, Any]]:
    """For each configuration its figures, by name of the figure."""
    pipelines = {name: load(name) for name in names}
    figures: dict[str, dict[str, Any]] = {name: {} for name in pipelines}
    makers: list[tuple[str, Maker, int]] = [(f"unet, {n} rows", unet_call, n) for n in rows]
    makers += [(f"decode, {n} images", decode_call, n) for n in (1, 8)]
    for title, make, size in makers:
        calls = {name: make(pipeline, size) for name, pipeline in pipelines.items()}
        for name, figure in interleaved(calls, rounds).items():
            figures[name][title] = figure
    plain = draw(pipelines[_PLAIN])
    for name, pipeline in pipelines.items():
        difference = np.abs(draw(pipeline) - plain)
        figures[name]["largest difference"] = int(difference.max())
        figures[name]["mean difference"] = float(difference.mean())
    return figures


def show(figures: dict[str, dict[str, Any]]) -> None:
    """Print the figures; speeds as multiples of plain fp32."""
    table = Table(box=None, title=f"speed against {_PLAIN} fp32; differences in 1/255")
    table.add_column("")
    for title in figures[_PLAIN]:
        table.add_column(title, justify="right")
    for name, row in figures.items():
        cells = []
        for value in row.values():
            if isinstance(value, dict):
                cells.append(f"{value['speed']:.2f}x ({value['ms']:.1f} ms)")
            else:
                cells.append(f"{value:.3g}")
        table.add_row(name, *cells)
    Console(width=max(160, Console().width)).print(table)


def main(
    rows: Annotated[list[int] | None, typer.Option(help="Rows of the U-Net calls.")] = None,
    rounds: Annotated[int, typer.Option(min=3, help="Rounds per figure.")] = 30,
    threads: Annotated[
        int | None,
        typer.Option(min=1, help="Torch's threads; with 1, CPU time is measured, not wall time."),
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option(help="Configurations to measure beside plain. Unset: all.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="File for the figures, as JSON.")] = None,
) -> None:
    """Measure U-Net calls, VAE decodes and pixel differences of every speed-up on this CPU."""
    unknown = set(only or ()) - _CONFIGURATIONS.keys()
    if unknown:
        known = "; ".join(_CONFIGURATIONS)
        raise typer.BadParameter(f"{', '.join(sorted(unknown))}; there are: {known}")
    names = [name for name in _CONFIGURATIONS if not only or name in (_PLAIN, *only)]
    if threads is not None:
        torch.set_num_threads(threads)
    with torch.inference_mode():
        figures = measure(names, rows or [2, 8, 16, 32], rounds)
    show(figures)
    if output is not None:
        content = {
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "cpu_capability": torch.backends.cpu.get_cpu_capability(),
            "bf16_in_hardware": cpu_computes(torch.bfloat16),
            "rounds": rounds,
            "figures": figures,
        }
        output.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
