"""A whole service under a real Prometheus, with traffic behind it."""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import httpx
import pytest

from bench.dashboard import traffic
from bench.dashboard.prometheus import Prometheus
from bench.dashboard.stack import Stack
from tests.service.webhook_rig import SECRET
from tests.worker.conftest import rig

__all__ = ["observed", "rig"]


@dataclass(frozen=True)
class Observed:
    """What runs, since when, and what watches it."""

    stack: Stack
    prometheus: Prometheus
    began: float

    def scrape(self, part: str) -> str:
        """What ``gateway`` or ``worker`` serves under ``/metrics``."""
        return httpx.get(self.stack.metrics_urls[part], trust_env=False).text


@pytest.fixture(scope="session")
def observed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Observed]:
    """Server, gateway, worker and Prometheus, after some traffic of all kinds."""
    folder = tmp_path_factory.mktemp("observed")
    (folder / "prometheus").mkdir()
    stack = Stack(folder, max_batch_rows=8, webhook_secret=SECRET, webhook_allow_private=True)
    try:
        stack.start()
        with Prometheus(folder / "prometheus", stack.targets) as prometheus:
            stack.wait_until_ready()
            began = time.time()
            traffic.send(stack.base_url, seconds=3, rounds=3)
            yield Observed(stack, prometheus, began)
    finally:
        stack.stop()
