"""The dashboard's panels, as Grafana would ask Prometheus for them."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

DASHBOARD: Final = Path(__file__).parents[2] / "deploy" / "grafana" / "dashboards" / "koala.json"

# What only a worker on a GPU serves.
_GPU_ONLY: Final = ("koala_vram_", "koala_gpu_")


@dataclass(frozen=True, slots=True)
class Query:
    """An expression with Grafana's variables filled in, and the template of its legend."""

    expression: str
    legend: str

    @property
    def needs_gpu(self) -> bool:
        """Whether there is no data without a GPU."""
        return any(name in self.expression for name in _GPU_ONLY)


@dataclass(frozen=True, slots=True)
class Panel:
    """A panel: what it shows, how, and where on a grid of 24 columns."""

    title: str
    kind: str
    unit: str
    x: int
    y: int
    width: int
    height: int
    queries: tuple[Query, ...]


def panels(rate_interval: str) -> Iterator[Panel]:
    """All panels with queries, for all workers.

    Args:
        rate_interval: What Grafana would put for ``$__rate_interval``, such as ``1m``.
    """
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        if panel["type"] != "row":
            yield _panel(panel, rate_interval)


def _panel(panel: dict[str, Any], rate_interval: str) -> Panel:
    place = panel["gridPos"]
    return Panel(
        title=panel["title"],
        kind=panel["type"],
        unit=panel["fieldConfig"]["defaults"]["unit"],
        x=place["x"],
        y=place["y"],
        width=place["w"],
        height=place["h"],
        queries=tuple(
            Query(
                target["expr"].replace("$__rate_interval", rate_interval).replace("$worker", ".*"),
                target["legendFormat"],
            )
            for target in panel["targets"]
        ),
    )
