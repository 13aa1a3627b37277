"""docs/metrics.md against what gateway and worker serve."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from tests.observability.conftest import Observed
from tests.observability.fake_nvml import FakeNvml
from worker.nvml_metrics import NvmlCollector
from worker.vram_metrics import VramCollector

TABLE = Path(__file__).parents[2] / "docs" / "metrics.md"

Row = tuple[str, str, str]


def documented(heading: str) -> dict[str, Row]:
    """Type, labels and meaning by name, from the table under a heading."""
    text = TABLE.read_text().split(f"\n## {heading}\n")[1].split("\n## ")[0]
    rows = (
        [cell.strip() for cell in line.strip("|").split(" | ")]
        for line in text.splitlines()
        if line.startswith("| `")
    )
    return {name.strip("`"): (kind, labels, meaning) for name, kind, labels, meaning in rows}


def described(families: Iterable[Metric]) -> dict[str, Row]:
    """The same of what is served."""
    rows = {}
    for family in families:
        name = f"{family.name}_total" if family.type == "counter" else family.name
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        listed = ", ".join(f"`{label}`" for label in sorted(labels))
        rows[name] = (family.type, listed, family.documentation.replace("\\n", " "))
    return rows


def served(text: str) -> dict[str, Row]:
    return described(text_string_to_metric_families(text))


def test_the_table_has_what_a_running_gateway_serves(observed: Observed) -> None:
    shared = documented("Gateway and worker")
    assert served(observed.scrape("gateway")) == documented("Gateway") | shared


def test_the_table_has_what_a_running_worker_serves(observed: Observed) -> None:
    shared = documented("Gateway and worker")
    assert served(observed.scrape("worker")) == documented("Worker") | shared


def test_the_table_has_what_a_worker_on_a_gpu_serves_beside_that(monkeypatch: Any) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (3 * 2**30, 8 * 2**30))
    collectors = VramCollector(torch.device("cuda:0")), NvmlCollector("ab", FakeNvml())
    families = [family for collector in collectors for family in collector.collect()]
    assert described(families) == documented("Worker on a GPU")


def test_no_label_grows_with_what_clients_send(observed: Observed) -> None:
    # A time series for each job, image, prompt or path would fill Prometheus.
    for part in ("gateway", "worker"):
        for family in text_string_to_metric_families(observed.scrape(part)):
            for sample in family.samples:
                for value in sample.labels.values():
                    assert "job_" not in value, sample
                    assert len(value) < 80, sample


def test_every_name_says_its_unit_as_prometheus_wants_it(observed: Observed) -> None:
    for part in ("gateway", "worker"):
        for family in text_string_to_metric_families(observed.scrape(part)):
            text = family.documentation.lower()
            assert "milliseconds" not in text
            if family.type == "histogram":
                assert family.name.endswith(("_seconds", "_rows", "_ratio")), family.name
            if "bytes" in text:
                assert "_bytes" in family.name, family.name
