"""The image store with a meter on it: how long its calls take, and how many fail."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Histogram

from koala.store import ImageStore

_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_OPERATIONS: Final = ("put", "get", "delete", "list", "probe")


class StoreMetrics:
    """Metrics of an image store.

    Args:
        registry: Where they are registered.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self.seconds = Histogram(
            "koala_image_store_seconds",
            "Time of a call to the image store that went well.",
            ["operation"],
            buckets=_BUCKETS,
            registry=registry,
        )
        self.errors = Counter(
            "koala_image_store_errors",
            "Calls to the image store that failed because it is full, read-only or out of reach.",
            ["operation"],
            registry=registry,
        )
        for operation in _OPERATIONS:
            self.seconds.labels(operation)
            self.errors.labels(operation)


class MeteredStore(ImageStore):
    """An image store whose calls are measured; an image that is not there is no error of it.

    Args:
        url: A folder or an fsspec URL.
        metrics: Where to count.
    """

    def __init__(self, url: str, metrics: StoreMetrics) -> None:
        super().__init__(url)
        self._metrics = metrics

    def put(self, name: str, data: bytes) -> None:
        """As :meth:`ImageStore.put`."""
        with self._metered("put"):
            super().put(name, data)

    def get(self, name: str) -> bytes:
        """As :meth:`ImageStore.get`."""
        with self._metered("get"):
            return super().get(name)

    def probe(self) -> None:
        """As :meth:`ImageStore.probe`."""
        with self._metered("probe"):
            super().probe()

    def delete(self, name: str) -> None:
        """As :meth:`ImageStore.delete`."""
        with self._metered("delete"):
            super().delete(name)

    def names(self) -> list[str]:
        """As :meth:`ImageStore.names`."""
        with self._metered("list"):
            return super().names()

    @contextmanager
    def _metered(self, operation: str) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        except OSError:
            self._metrics.errors.labels(operation).inc()
            raise
        self._metrics.seconds.labels(operation).observe(time.perf_counter() - began)
