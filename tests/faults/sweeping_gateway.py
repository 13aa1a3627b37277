"""A gateway that sweeps the image store all the time, for tests that wait until it did."""

from functools import partial
from typing import Final

import service.gateway
import service.retention
from koala.cli import app

_PAUSE_SECONDS: Final = 0.2

if __name__ == "__main__":
    service.retention._ORPHANS_SECONDS = _PAUSE_SECONDS  # type: ignore[misc]
    service.gateway.Retention = partial(  # type: ignore[misc, assignment]
        service.retention.Retention, pause=_PAUSE_SECONDS
    )
    app(["serve"])
