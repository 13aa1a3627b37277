"""What a worker says of itself."""

import time
from collections.abc import Callable, Mapping
from typing import Any

from koala.workers import Vram, WorkerAd
from worker.batching import nearest_size
from worker.engine import Engine
from worker.measurements import expected_seconds, measured_sizes
from worker.rates import Rates


class Account:
    """Keeps the figures that the worker tells the gateways.

    The loop's thread writes them; :meth:`describe` may be called from another one.

    Args:
        engine: Whose figures they are.
        fixed: What does not change: model, device, dtype, metrics_url.
        vram: Looks at the memory of the device, from any thread.
    """

    def __init__(
        self, engine: Engine, fixed: Mapping[str, Any], vram: Callable[[], Vram | None]
    ) -> None:
        self.rates = Rates()
        # The engine belongs to the loop's thread; the other one reads this instead.
        self.rows = 0
        self._engine = engine
        self._fixed = fixed
        self._vram = vram
        # When the loop's last round ended, if the engine had more to do.
        self._round_ended: float | None = None
        self._sizes_known = len(engine.capacity.calibrations)

    def note_step(self, began: float) -> None:
        """Note a tick of the engine that ends now, ``began`` by the performance counter.

        The round of the loop since the last one is compared with what the curve says of its calls.
        """
        now = time.perf_counter()
        tick = self._engine.last_tick
        if tick.rows:
            self.rates.step(now - began)
        else:
            self.rates.pause(now - began)
        capacity = self._engine.capacity
        expected = expected_seconds(capacity, tick)
        known, self._sizes_known = self._sizes_known, len(capacity.calibrations)
        # A round in which a size was measured says nothing of load.
        if expected is not None and known == self._sizes_known:
            size = None if tick.size is None else nearest_size(tick.size, capacity.calibrations)
            self.rates.lap(size, now - (self._round_ended or began), expected)
        self._round_ended = None if self._engine.is_idle else now
        self.rows = self._engine.rows

    def describe(self, **given: Any) -> WorkerAd:
        """The account as it stands, with name and times ``given``."""
        return WorkerAd(
            **given,
            **self._fixed,
            rows=self.rows,
            max_rows=self._engine.max_rows,
            sizes=[
                size.model_copy(update={"slowness": self.rates.slowness((size.width, size.height))})
                for size in measured_sizes(self._engine.capacity)
            ],
            images_total=self.rates.images_total,
            images_last_minute=self.rates.images_last_minute,
            images_per_second=self.rates.images_per_second,
            seconds_per_step=self.rates.seconds_per_step,
            slowness=self.rates.slowness(),
            store_seconds=self.rates.store_seconds,
            vram=self._vram(),
        )
