"""``python -m bench.dashboard``: a service under load and Prometheus, checked and drawn."""

import argparse
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Final

from bench.dashboard import checks, traffic
from bench.dashboard.picture import draw
from bench.dashboard.prometheus import Prometheus, promtool
from bench.dashboard.stack import Stack

# Longer than a worker takes to start, so that what it does before the first scrape is seen.
_RATE_INTERVAL: Final = "30s"


def main() -> int:
    """Run all checks and write the picture; 1 if anything is wrong."""
    parser = argparse.ArgumentParser(prog="python -m bench.dashboard", description=__doc__)
    parser.add_argument("--seconds", type=float, default=120, help="How long there is load.")
    parser.add_argument("--output", type=Path, help="Picture of the dashboard to write.")
    options = parser.parse_args()
    for arguments in (
        ["check", "config", "prometheus.yml"],
        ["check", "rules", "rules.yml"],
        ["test", "rules", "rules_test.yml"],
    ):
        promtool(*arguments)
        print(f"promtool {' '.join(arguments)}: ok")
    with tempfile.TemporaryDirectory(prefix="koala-dashboard-") as folder:
        return _run(Path(folder), options.seconds, options.output)


def _run(folder: Path, seconds: float, output: Path | None) -> int:
    (folder / "prometheus").mkdir()
    # A short lease, so that the jobs of the worker that is killed are soon recovered.
    stack = Stack(folder, lease_seconds=1, heartbeat_seconds=0.3)
    try:
        stack.start()
        stack.wait_until_ready()
        with Prometheus(folder / "prometheus", stack.targets) as prometheus:
            began = time.time()
            load = threading.Thread(target=traffic.send, args=(stack.base_url, seconds))
            load.start()
            time.sleep(seconds / 2)
            stack.kill_worker()
            stack.start_worker()
            load.join()
            faults = {
                "targets that are down": checks.until_clean(
                    lambda: checks.targets_down(prometheus)
                ),
                "rules without a value": checks.until_clean(
                    lambda: checks.rules_without_value(prometheus)
                ),
                "queries of the dashboard without data": checks.queries_without_data(
                    prometheus, "1m"
                ),
            }
            if output is not None:
                draw(prometheus, began, time.time(), _RATE_INTERVAL, output)
                print(f"wrote {output}")
            print(f"targets: {prometheus.targets()}")
            print(f"recording rules: {len(prometheus.rules('recording'))}")
            print(f"alerts: {prometheus.rules('alerting')}")
    finally:
        stack.stop()
    for what, found in faults.items():
        print(f"{what}: {found or 'none'}")
    return 1 if any(faults.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
