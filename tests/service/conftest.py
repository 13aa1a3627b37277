"""Fixtures of the gateway's tests."""

from collections.abc import Iterator

import pytest
import structlog

from koala.settings import Settings
from tests.service.fakes import FakeWorker, Served, serving
from tests.service.webhook_rig import Receiver, receiving


@pytest.fixture(scope="session", autouse=True)
def logged_through_pytest() -> Iterator[None]:
    """Send log lines where pytest captures them, whichever thread they come from."""
    structlog.configure(
        processors=[
            structlog.processors.format_exc_info,
            structlog.processors.KeyValueRenderer(),
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
    )
    yield
    structlog.reset_defaults()


@pytest.fixture(scope="module")
def api(valkey_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A gateway for a whole module, for tests that leave nothing behind that matters."""
    folder = tmp_path_factory.mktemp("api")
    with serving(Settings(redis_url=valkey_server, data_dir=folder, queue="api")) as served:
        yield served


@pytest.fixture
def served(settings: Settings) -> Iterator[Served]:
    """A gateway of this test's own, with an empty queue."""
    with serving(settings) as running:
        yield running


@pytest.fixture
def worker(settings: Settings) -> Iterator[FakeWorker]:
    """The stand-in for a worker of ``served``."""
    fake = FakeWorker(settings)
    yield fake
    fake.redis.close()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """A receiver of webhooks."""
    with receiving() as running:
        yield running
