"""The figures of a plan for people."""

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from koala.printable import printable
from worker.batching import Size
from worker.simulation.plan import Plan, Point

_COLUMNS = (
    "load",
    "strategy",
    "images/min",
    "mean",
    "p50",
    "p95",
    "wait",
    "rows",
    "busy",
)


def show(plan: Plan, points: list[Point], console: Console) -> None:
    """Print what was simulated, the table, and what it rests on."""
    gpus = "" if plan.gpus == 1 else f"{plan.gpus} times "
    console.print(
        f"[bold]{gpus}{escape(printable(plan.device.name))}[/bold]: {_workload(plan)}",
        soft_wrap=True,
    )
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in _COLUMNS:
        is_text = column in ("load", "strategy")
        table.add_column(column, justify="left" if is_text else "right", no_wrap=True)
    for i, point in enumerate(points):
        begins = i == 0 or point.load != points[i - 1].load
        figures = point.summary
        table.add_row(
            str(point.load) if begins else "",
            point.strategy + ("*" if point.is_overloaded else ""),
            f"{figures.images_per_minute:.1f}",
            f"{figures.mean_latency:.2f}",
            f"{figures.p50_latency:.2f}",
            f"{figures.p95_latency:.2f}",
            f"{figures.mean_wait:.2f}",
            f"{figures.rows_per_step:.1f}",
            f"{figures.busy_share:.0%}",
        )
    console.print(table)
    console.print("Seconds from arrival to the image; wait: of these, before its first step.")
    if any(point.is_overloaded for point in points):
        text = "* More is asked for than can be drawn: waits grow for as long as that goes on."
        console.print(text, soft_wrap=True)
    for assumption in plan.device.assumptions:
        console.print(assumption, soft_wrap=True)


def _workload(plan: Plan) -> str:
    workload = plan.workload
    total = sum(workload.sizes.values())
    sizes = ", ".join(
        f"{_px(size)}{'' if len(workload.sizes) == 1 else f' ({weight / total:.0%})'}, "
        f"at most {plan.device.cap(size)} rows"
        for size, weight in workload.sizes.items()
    )
    images = "" if workload.n == 1 else f", {workload.n} images each"
    steps, guidance = _span(workload.steps), _span(workload.guidance_scale)
    return f"{sizes}; {steps} steps, guidance {guidance}{images}; {plan.requests} requests a line"


def _px(size: Size) -> str:
    return f"{size[0]}x{size[1]}"


def _span(bounds: tuple[float, float]) -> str:
    low, high = bounds
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"
