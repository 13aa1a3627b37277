"""Our own worker, batching whole requests: ``python -m bench.whole_requests``.

The same process as ``koala work`` but for one rule: while anything is being drawn, nothing joins.
All that this benchmark knows of the worker's inside is in this file.
"""

import sys
from unittest.mock import patch

import worker.run
from koala import logs
from koala.settings import Settings
from worker.inflight import InflightWorker

# A job of the benchmark is one image: a row, or two with guidance.
_MOST_ROWS_OF_A_JOB = 2


class WholeRequestWorker(InflightWorker):
    """Takes jobs only while the engine holds nothing, and only what fits into one batch."""

    @property
    def _has_room(self) -> bool:
        requests = [request for flight in self._flights.values() for request in flight.requests]
        rows = sum(request.rows for request in requests)
        return (
            super()._has_room
            and self._engine.in_flight == 0
            and rows + _MOST_ROWS_OF_A_JOB <= self._engine.max_rows
        )


def main() -> int:
    """Work until a signal asks to stop; the process's exit code."""
    settings = Settings()
    logs.configure(settings)
    # Everything else has to stay as it is, so the worker's own start is used and not repeated.
    with patch.object(worker.run, "InflightWorker", WholeRequestWorker):
        return worker.run.run(settings)


if __name__ == "__main__":
    sys.exit(main())
