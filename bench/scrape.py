"""What a worker's ``/metrics`` and ``/proc`` say of it."""

from collections.abc import Iterator
from pathlib import Path

import httpx
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample


def scrape(url: str) -> dict[str, float]:
    """Every sample without labels, by its name; histograms give ``_sum`` and ``_count``.

    Raises:
        httpx.HTTPError: Nobody answers.
    """
    answer = httpx.get(url, timeout=10, trust_env=False).raise_for_status()
    return {sample.name: sample.value for sample in _samples(answer.text) if not sample.labels}


def totals(text: str) -> dict[tuple[str, str], float]:
    """Every sample of a metrics page but buckets, by its name and the values of its labels."""
    return {
        (sample.name, ",".join(sample.labels.values())): sample.value
        for sample in _samples(text)
        if "le" not in sample.labels
    }


def _samples(text: str) -> Iterator[Sample]:
    return (sample for family in text_string_to_metric_families(text) for sample in family.samples)


def peak_memory(pid: int) -> int:
    """Largest resident set of a process so far, in bytes. Linux only.

    Raises:
        OSError: The process is gone.
    """
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/{pid}/status has no VmHWM")
