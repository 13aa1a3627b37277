"""What a worker's ``/metrics`` and ``/proc`` say of it."""

from pathlib import Path

import httpx
from prometheus_client.parser import text_string_to_metric_families


def scrape(url: str) -> dict[str, float]:
    """Every sample without labels, by its name; histograms give ``_sum`` and ``_count``.

    Raises:
        httpx.HTTPError: Nobody answers.
    """
    answer = httpx.get(url, timeout=10, trust_env=False).raise_for_status()
    return {
        sample.name: sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
        if not sample.labels
    }


def peak_memory(pid: int) -> int:
    """Largest resident set of a process so far, in bytes. Linux only.

    Raises:
        OSError: The process is gone.
    """
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/{pid}/status has no VmHWM")
