"""``python -m bench.plan_check``: what ``koala plan`` predicts beside what is measured here.

Parts of KOALA-700M in full size, with weights of no meaning, are run on the CPU in fp32, and
torch's allocator tells what they took. It takes some minutes and 8 GiB.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from rich.console import Console
from rich.table import Table
from torch.profiler import ProfilerActivity, profile

from koala.catalogue import resolve
from worker.batching import Size
from worker.engine.residency import Residency
from worker.planning.architecture import Architecture, architecture_of
from worker.planning.cards import PUBLISHED_PEAKS
from worker.planning.forecast import Forecast, Need
from worker.planning.plan import Plan

_MODEL: Final = "koala-lightning-700m"
_SIZE: Final[Size] = (512, 512)
# diffusers leaves these without types.
_UNet: Final[Any] = UNet2DConditionModel
_Vae: Final[Any] = AutoencoderKL


@dataclass(frozen=True, slots=True)
class Check:
    """A call, predicted and measured.

    Args:
        name: The call.
        need: What was predicted.
        measured: Bytes at its peak.
    """

    name: str
    need: Need
    measured: int


def measured_peak(call: Callable[[], object]) -> int:
    """Bytes that a call takes of the CPU's memory at its peak, beyond what lived before it.

    torch's allocator reports every block that it gives out and takes back to its profiler, those
    of kernels included, which is more than a count of tensors sees.
    """
    call()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        kept = call()
    del kept
    events: Any = profiler.profiler
    blocks = sorted(
        (event.start_ns(), index, event.nbytes())
        for index, event in enumerate(events.kineto_results.events())
        if event.name() == "[memory]" and event.device_type().name == "CPU"
    )
    live = peak = 0
    for _, _, size in blocks:
        live += size
        peak = max(peak, live)
    return peak


@torch.inference_mode()
def full_size_checks() -> Iterator[Check]:
    """A step of one guided image, and decoding one."""
    architecture = architecture_of(resolve(_MODEL))
    forecast = Forecast(architecture, torch.float32)
    rows, side = 2, _SIZE[0] // 8
    yield Check("step, 2 rows", forecast.step(_SIZE, rows), _step_peak(architecture, rows, side))
    yield Check("decode", forecast.decode(_SIZE, 1), _decode_peak(architecture, side))


def _step_peak(architecture: Architecture, rows: int, side: int) -> int:
    unet = _UNet.from_config(dict(architecture.unet)).eval()

    def call() -> object:
        return unet(
            torch.zeros(rows, 4, side, side),
            torch.zeros(rows),
            encoder_hidden_states=torch.zeros(rows, 77, 2048),
            added_cond_kwargs={
                "text_embeds": torch.zeros(rows, 1280),
                "time_ids": torch.zeros(rows, 6),
            },
            return_dict=False,
        )

    return measured_peak(call)


def _decode_peak(architecture: Architecture, side: int) -> int:
    vae = _Vae.from_config(dict(architecture.vae)).eval()
    return measured_peak(lambda: vae.decode(torch.zeros(1, 4, side, side), return_dict=False))


def main() -> None:
    """Measure, and print both tables."""
    console = Console(highlight=False)
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("MiB", "predicted live", "with workspace", "measured"):
        table.add_column(column, justify="left" if column == "MiB" else "right")
    for check in full_size_checks():
        sizes = (check.need.activations, check.need.total, check.measured)
        table.add_row(check.name, *(f"{size / 2**20:.0f}" for size in sizes))
    console.print(f"{_MODEL}, {_SIZE[0]} px, float32, on this CPU:")
    console.print(table)
    console.print("Published peaks, and the plan's:")
    console.print(_published())


def _published() -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("GB", "published", "plan", "plan, at least"):
        table.add_column(column, justify="left" if column == "GB" else "right")
    plans: dict[str, Plan] = {}
    for (card, model), published in PUBLISHED_PEAKS.items():
        size: Size = (512, 512) if "turbo" in model else (1024, 1024)
        if model not in plans:
            # Both series have the same parts.
            architecture = architecture_of(resolve(model.replace("turbo", "lightning")))
            plans[model] = Plan(architecture, size, torch.float16)
        sizes = (published, plans[model].peak(Residency.ALL), plans[model].least(Residency.ALL))
        table.add_row(f"{model}, {card}", *(f"{size / 1e9:.1f}" for size in sizes))
    return table


if __name__ == "__main__":
    main()
