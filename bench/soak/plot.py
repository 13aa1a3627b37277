"""A plot of a soak. Needs the ``plot`` extra."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib

from bench.soak.samples import Sample

matplotlib.use("Agg")

from matplotlib import pyplot


def write(samples: Sequence[Sample], warm_up: float, path: Path) -> None:
    """Write memory, open files and keys over the minutes, a panel each, as SVG."""
    panels = {
        "MiB": [name for name in samples[0].values if name.endswith("memory")],
        "open files, clients": [
            name for name in samples[0].values if name.endswith(("open files", "clients"))
        ],
        "keys, images": [name for name in samples[0].values if name.startswith(("keys", "images"))],
    }
    figure, axes = pyplot.subplots(1, len(panels), figsize=(12, 4))
    minutes = [sample.seconds / 60 for sample in samples]
    for axis, (label, names) in zip(axes, panels.items(), strict=True):
        for name in names:
            axis.plot(minutes, [sample.values[name] for sample in samples], label=name)
        axis.axvspan(0, warm_up / 60, color="0.93")
        axis.set(xlabel="minutes", ylabel=label, ylim=(0, None), xlim=(0, None))
        axis.legend(frameon=False, fontsize="small")
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)
