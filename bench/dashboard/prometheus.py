"""A real Prometheus on loopback, with the configuration that is deployed and targets of its own."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx

from bench.processes import free_port

CONFIGURATION: Final = Path(__file__).parents[2] / "deploy" / "prometheus"

_START_SECONDS: Final = 30.0


class NoPrometheus(Exception):
    """Prometheus is not installed, or does not do what is asked; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Series:
    """One time series: its labels, and pairs of Unix time and value."""

    labels: Mapping[str, str]
    points: Sequence[tuple[float, float]]


def binary(name: str) -> str:
    """The path of ``prometheus`` or ``promtool``.

    Raises:
        NoPrometheus: It is not installed.
    """
    # Beside our interpreter first: `make` puts Debian's there.
    places = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    found = shutil.which(name, path=places)
    if found is None:
        raise NoPrometheus(
            f"{name} is not installed: run `make test` where apt is, or put {name} from "
            "https://prometheus.io/download into the PATH."
        )
    return found


def promtool(*arguments: str) -> str:
    """Run ``promtool`` on the deployed configuration; what it prints.

    Raises:
        NoPrometheus: It is not installed, or finds a fault, which the message tells.
    """
    command = [binary("promtool"), *arguments]
    run = subprocess.run(command, cwd=CONFIGURATION, capture_output=True, text=True, timeout=60)
    if run.returncode:
        raise NoPrometheus(f"promtool {' '.join(arguments)}:\n{run.stdout}{run.stderr}")
    return run.stdout


class Prometheus:
    """A server that scrapes; a context manager that starts and ends it.

    Args:
        folder: For its data and its copy of the configuration.
        targets: Addresses by the name of the file with targets, without its suffix.
        interval: Seconds between scrapes, and between evaluations of rules.

    Raises:
        NoPrometheus: It is not installed.
    """

    def __init__(
        self, folder: Path, targets: Mapping[str, Sequence[str]], interval: int = 1
    ) -> None:
        self._folder = folder
        self._port = free_port()
        self._binary = binary("prometheus")
        shutil.copytree(CONFIGURATION, folder / "configuration")
        for name, addresses in targets.items():
            path = folder / "configuration" / "targets" / f"{name}.yml"
            path.write_text(json.dumps([{"targets": list(addresses)}]))
        self._config = folder / "configuration" / "prometheus.yml"
        text = self._config.read_text()
        self._config.write_text(text.replace("_interval: 15s", f"_interval: {interval}s"))
        self._http = httpx.Client(base_url=f"http://127.0.0.1:{self._port}/api/v1", trust_env=False)

    def __enter__(self) -> "Prometheus":
        """Start it; returns once it is ready.

        Raises:
            NoPrometheus: It does not become ready.
        """
        log = self._folder / "prometheus.log"
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [
                    self._binary,
                    f"--config.file={self._config}",
                    f"--storage.tsdb.path={self._folder / 'data'}",
                    f"--web.listen-address=127.0.0.1:{self._port}",
                    "--log.level=warn",
                ],
                stderr=output,
            )
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline and self._process.poll() is None:
            with suppress(httpx.HTTPError):
                if self._http.get(f"http://127.0.0.1:{self._port}/-/ready").is_success:
                    return self
            time.sleep(0.1)
        self.__exit__()
        raise NoPrometheus(f"Prometheus does not start:\n{log.read_text()}")

    def __exit__(self, *_: object) -> None:
        """End it."""
        self._http.close()
        self._process.terminate()
        self._process.wait()

    def query(self, expression: str) -> list[Series]:
        """The series of an expression, as they stand now.

        Raises:
            NoPrometheus: It refuses the expression.
        """
        data = self._get("/query", query=expression)
        if data["resultType"] == "scalar":
            return [_series({"value": data["result"]})]
        return [_series(entry) for entry in data["result"]]

    def query_range(self, expression: str, start: float, end: float, step: float) -> list[Series]:
        """The series of an expression between two Unix times, with a point every ``step`` seconds.

        Raises:
            NoPrometheus: It refuses the expression.
        """
        data = self._get("/query_range", query=expression, start=start, end=end, step=step)
        return [_series(entry) for entry in data["result"]]

    def targets(self) -> dict[str, str]:
        """The health of each target, by job and address."""
        found = self._get("/targets")["activeTargets"]
        return {f"{t['labels']['job']} {t['labels']['instance']}": t["health"] for t in found}

    def rules(self, kind: str) -> dict[str, str]:
        """The health of each rule of a kind, ``recording`` or ``alerting``, by its name."""
        groups = self._get("/rules")["groups"]
        rules = [rule for group in groups for rule in group["rules"] if rule["type"] == kind]
        return {rule["name"]: rule["health"] for rule in rules}

    def _get(self, path: str, **parameters: str | float) -> Any:
        body = self._http.get(path, params=parameters).json()
        if body["status"] != "success":
            raise NoPrometheus(f"{body['error']}: {parameters.get('query', path)}")
        return body["data"]


def _series(entry: Mapping[str, Any]) -> Series:
    points = entry.get("values") or [entry["value"]]
    return Series(entry.get("metric", {}), [(float(at), float(value)) for at, value in points])
