"""A plan for people."""

from collections.abc import Iterator
from typing import Final

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from koala.printable import printable
from worker.engine.residency import Residency
from worker.planning.attention import Attention
from worker.planning.forecast import Need
from worker.planning.options import Question
from worker.planning.pace import images_per_minute
from worker.planning.plan import GUIDED_ROWS

_ROWS: Final = (1, 2, 4, 8, 16)
_IMAGES: Final = 4

_ATTENTION: Final = {
    Attention.FUSED: "flash or memory-efficient",
    Attention.MATH: "the math kernel, with all scores in memory",
}


def show(question: Question, console: Console) -> None:
    """Print weights, phases, residencies, and what it rests on."""
    plan, forecast = question.plan, question.plan.forecast
    width, height = plan.size
    name = escape(printable(question.model.id))
    console.print(
        f"[bold]{name}[/bold], {width}x{height} px, {question.dtype}, "
        f"on {question.card} of {_gib(question.vram)} GiB",
        soft_wrap=True,
    )
    table = _table("GiB", "live", "workspace")
    for name, weights in (
        ("weights: U-Net", forecast.unet_bytes()),
        ("weights: U-Net in 8 bits", forecast.unet_bytes(narrow=True)),
        ("weights: VAE", forecast.vae_bytes),
        ("weights: text encoders", forecast.text_bytes),
    ):
        table.add_row(name, _gib(weights), "")
    for name, need in _calls(question):
        table.add_row(name, _gib(need.activations), _gib(need.workspace))
    console.print(table)
    console.print(_residencies(question))
    console.print(_verdict(question), soft_wrap=True)
    for note in notes(question):
        console.print(note, soft_wrap=True)


def notes(question: Question) -> Iterator[str]:
    """What the figures rest on, a sentence or two each."""
    context, reserve = question.plan.context >> 20, question.plan.reserve >> 20
    yield (
        "Live bytes are counted on the worker's own calls, run on shapes without memory; "
        f"attention: {_ATTENTION[question.attention]}."
    )
    yield (
        "Allowed for, not counted: workspace of convolutions and gaps of the allocator, as much as "
        f"a call's largest tensor; {context} MiB for the CUDA context, which peaks include; "
        f"{reserve} MiB that stay free."
    )
    if question.profiles:
        yield (
            "Images a minute are derived from published latencies as `koala simulate` does it, "
            "for 10 guided steps; moving text encoders, tiles and 8-bit weights cost more."
        )


def _calls(question: Question) -> Iterator[tuple[str, Need]]:
    forecast, size = question.plan.forecast, question.plan.size
    yield "text encoding, 2 prompts", forecast.encode
    for rows in _ROWS:
        plural = "" if rows == 1 else "s"
        yield f"step, {rows} row{plural}", forecast.step(size, rows)
    yield f"decode, {_IMAGES} images at once", forecast.decode(size, _IMAGES)
    yield "decode, one by one", forecast.decode(size, 1)
    yield f"decode, tiles of {forecast.tile_side} px", forecast.decode_tiled(size)


def _residencies(question: Question) -> Table:
    plan = question.plan
    cards = [f"{profile.card}/min" for profile in question.profiles]
    table = _table("residency", "weights", "peak", "fits", "rows", *cards)
    for residency in Residency:
        most = plan.most_rows(residency, question.vram)
        paces = [
            f"{images_per_minute(profile, plan.size, min(most, GUIDED_ROWS)):.1f}" if most else ""
            for profile in question.profiles
        ]
        table.add_row(
            residency,
            _gib(plan.weights(residency)),
            _gib(plan.peak(residency)),
            "yes" if most >= GUIDED_ROWS else "by row" if most else "no",
            str(most or ""),
            *paces,
        )
    return table


def _verdict(question: Question) -> str:
    chosen = question.plan.choose(question.vram)
    if chosen is None:
        return "It does not fit: not even one row, whatever is moved or narrowed."
    return f"KOALA_RESIDENCY=auto chooses [bold]{chosen}[/bold]."


def _table(first: str, *rest: str) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column(first, no_wrap=True)
    for column in rest:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f}"
