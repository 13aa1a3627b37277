"""``koala simulate``: plan throughput and latency for a GPU one does not have."""

import json
from pathlib import Path

from rich.console import Console

from koala.console import say
from worker.simulation import plot, table
from worker.simulation.options import OptionError, Options
from worker.simulation.plan import as_json


def run(options: Options, output: Path | None, wants_json: bool, console: Console) -> None:
    """Simulate, print the figures, and write the plot if one is wanted.

    Raises:
        OptionError: An option cannot be used; the message names it.
    """
    plan = options.plan()
    try:
        if output is not None:
            plot.check(output)
        points = list(plan.run())
        if output is not None:
            plot.write(plan, points, output)
    except plot.PlotError as error:
        raise OptionError(f"--output: {error}") from None
    if wants_json:
        console.print_json(json.dumps(as_json(plan, points)))
        return
    table.show(plan, points, console)
    if output is not None:
        say(f"{output} written", console)
