"""What a worker's container and Prometheus ask of it."""

import httpx
import pytest
from prometheus_client import CollectorRegistry, Counter

from worker.endpoint import Endpoint


@pytest.fixture(scope="module")
def endpoint() -> Endpoint:
    registry = CollectorRegistry()
    Counter("koala_test", "A test.", registry=registry).inc()
    return Endpoint(registry)


@pytest.fixture(scope="module")
def base_url(endpoint: Endpoint) -> str:
    return endpoint.serve("127.0.0.1", 0).removesuffix("/metrics")


def test_it_is_well_from_its_start_until_something_is_wrong(
    endpoint: Endpoint, base_url: str
) -> None:
    starting = httpx.get(f"{base_url}/healthz")
    assert starting.status_code == 503
    assert "starting" in starting.text

    trouble: list[str] = []
    endpoint.watch(lambda: trouble[0] if trouble else None)
    assert httpx.get(f"{base_url}/healthz").status_code == 200

    trouble.append("A step does not end.")
    ill = httpx.get(f"{base_url}/healthz")
    assert ill.status_code == 503
    assert ill.text == "A step does not end.\n"


def test_the_metrics_are_at_their_path_only(base_url: str) -> None:
    assert "koala_test_total 1.0" in httpx.get(f"{base_url}/metrics").text
    assert httpx.get(f"{base_url}/").status_code == 404


def test_a_taken_port_is_an_error(base_url: str) -> None:
    with pytest.raises(OSError, match="in use"):
        Endpoint(CollectorRegistry()).serve("127.0.0.1", int(base_url.rsplit(":", 1)[1]))
