"""Prometheus metrics that are read off the engine when somebody scrapes."""

from collections.abc import Callable, Iterator

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from worker.engine import Engine
from worker.measurements import measured_sizes


class EngineCollector(Collector):
    """The step-time curve of each measured size, the batch that follows, and memory.

    Args:
        engine: The engine.
        weights: Bytes that the model's weights take now.
    """

    def __init__(self, engine: Engine, weights: Callable[[], int]) -> None:
        self._engine = engine
        self._weights = weights

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """All families, as they stand now."""
        caps = GaugeMetricFamily(
            "koala_batch_cap_rows", "Most rows of a U-Net call at a size.", labels=["size"]
        )
        curve = GaugeMetricFamily(
            "koala_step_curve_seconds",
            "Seconds of a U-Net call by its rows, as measured.",
            labels=["size", "rows"],
        )
        for measured in measured_sizes(self._engine.capacity):
            caps.add_metric([measured.name], measured.max_rows)
            for rows, seconds in measured.step_seconds.items():
                curve.add_metric([measured.name, str(rows)], seconds)
        yield caps
        yield curve
        yield self._memory()

    def _memory(self) -> GaugeMetricFamily:
        memory = GaugeMetricFamily(
            "koala_memory_bytes",
            "Memory by what it is for: weights, LoRAs, samples in flight, the largest measured "
            "peaks of a U-Net call and of a decoder call, and what calls may still take.",
            labels=["kind"],
        )
        capacity = self._engine.capacity
        calibrations = list(capacity.calibrations.values())
        kinds: dict[str, list[int | None]] = {
            "weights": [self._weights()],
            "loras": [self._engine.lora_bytes],
            "in_flight": [self._engine.in_flight_bytes],
            "step_peak": [max(each.step_bytes.values(), default=None) for each in calibrations],
            "decode_peak": [each.decode_bytes for each in calibrations],
            "available": [capacity.available],
        }
        for kind, sizes in kinds.items():
            known = [size for size in sizes if size is not None]
            if known:
                memory.add_metric([kind], max(known))
        return memory
