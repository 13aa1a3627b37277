"""What has to hold of a running service under Prometheus."""

import math
import time
from collections.abc import Callable, Iterator
from typing import Final

from bench.dashboard.panels import panels
from bench.dashboard.prometheus import Prometheus

_PATIENCE_SECONDS: Final = 30.0


def until_clean(faults: Callable[[], list[str]]) -> list[str]:
    """What is wrong: at once if nothing is, else what is still wrong after half a minute."""
    ends = time.monotonic() + _PATIENCE_SECONDS
    while (found := faults()) and time.monotonic() < ends:
        time.sleep(0.5)
    return found


def targets_down(prometheus: Prometheus) -> list[str]:
    """Targets that are not up, or all, if there are none."""
    health = prometheus.targets()
    if not health:
        return ["no targets"]
    return [name for name, state in health.items() if state != "up"]


def rules_without_value(prometheus: Prometheus) -> list[str]:
    """Recording rules that give no value, and alerts that cannot be evaluated."""
    silent = [name for name in prometheus.rules("recording") if not has_data(prometheus, name)]
    return silent + [
        name for name, health in prometheus.rules("alerting").items() if health != "ok"
    ]


def queries_without_data(prometheus: Prometheus, rate_interval: str) -> list[str]:
    """Queries of the dashboard that give nothing, those apart that need a GPU."""
    return [
        f"{panel.title}: {query.expression}"
        for panel in panels(rate_interval)
        for query in panel.queries
        if not query.needs_gpu and not has_data(prometheus, query.expression)
    ]


def has_data(prometheus: Prometheus, expression: str) -> bool:
    """Whether an expression has a value now that is a number."""
    return any(not math.isnan(value) for value in _values(prometheus, expression))


def _values(prometheus: Prometheus, expression: str) -> Iterator[float]:
    for series in prometheus.query(expression):
        yield from (value for _, value in series.points)
