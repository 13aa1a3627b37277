"""What a GPU tells of itself, with stand-ins for torch's and NVIDIA's part."""

import sys
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from prometheus_client.metrics_core import Metric
from structlog.testing import capture_logs

from tests.observability.fake_nvml import FakeNvml
from worker.metrics import WorkerMetrics
from worker.nvml_metrics import NoNvml, NvmlCollector, nvml_collector
from worker.vram_metrics import VramCollector


def values(families: Iterable[Metric]) -> dict[str, float]:
    return {sample.name: sample.value for family in families for sample in family.samples}


def test_readings_of_the_gpu_are_in_base_units() -> None:
    nvml = FakeNvml()
    collector = NvmlCollector("1234-ab", nvml)
    assert nvml.asked == ["GPU-1234-ab"]
    assert values(collector.collect()) == {
        "koala_gpu_utilization_ratio": 0.87,
        "koala_gpu_temperature_celsius": 66.0,
        "koala_gpu_power_watts": 312.5,
        "koala_gpu_power_limit_watts": 700.0,
    }


def test_a_reading_that_the_card_does_not_have_is_left_out() -> None:
    collector = NvmlCollector("1234-ab", FakeNvml("nvmlDeviceGetPowerUsage"))
    assert "koala_gpu_power_watts" not in values(collector.collect())
    assert "koala_gpu_utilization_ratio" in values(collector.collect())


@pytest.mark.parametrize("broken", ["nvmlInit", "nvmlDeviceGetHandleByUUID"])
def test_a_library_that_does_not_work_is_told_by_name(broken: str) -> None:
    with pytest.raises(NoNvml, match="NVML: Not Supported"):
        NvmlCollector("1234-ab", FakeNvml(broken))


def test_without_the_library_a_worker_says_what_is_missing(monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with capture_logs() as lines:
        assert nvml_collector("1234-ab") is None
    assert [line["reason"] for line in lines] == ["nvidia-ml-py is not installed"]


def test_with_the_real_library_but_without_a_gpu_a_worker_says_so() -> None:
    with capture_logs() as lines:
        assert nvml_collector("1234-ab") is None
    assert "NVML" in lines[0]["reason"]


def test_the_memory_of_a_gpu_is_told_in_bytes(monkeypatch: Any) -> None:
    sizes = {"memory_allocated": 5, "memory_reserved": 7, "max_memory_allocated": 6}
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1, 9))
    for name, size in sizes.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, size=size: size)
    assert values(VramCollector(torch.device("cuda:0")).collect()) == {
        "koala_vram_total_bytes": 9,
        "koala_vram_free_bytes": 1,
        "koala_vram_allocated_bytes": 5,
        "koala_vram_reserved_bytes": 7,
        "koala_vram_peak_bytes": 6,
    }


def test_a_worker_on_a_cpu_has_no_metrics_of_a_gpu() -> None:
    metrics = WorkerMetrics()
    metrics.watch_device(torch.device("cpu"))
    names = {family.name for family in metrics.registry.collect()}
    assert not any(name.startswith(("koala_vram", "koala_gpu")) for name in names)
