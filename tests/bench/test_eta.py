"""The command that holds ETAs against what came."""

import os
import subprocess
import sys


def bench_eta(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bench", "eta", *arguments],
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )


def test_a_short_run_tells_how_far_etas_were_off() -> None:
    few = ("--rounds", "1", "--jobs", "4", "--clients", "1", "--threads", "1")
    done = bench_eta(*few, "--shortest", "0")
    assert done.returncode == 0, done.stderr
    at_admission, half_way = (line.strip() for line in done.stdout.splitlines()[2:4])
    for line, told in ((at_admission, "at admission"), (half_way, "half way")):
        assert line.startswith(told)
        count, size, error = line.removeprefix(told).split()
        assert 1 <= int(count) <= 2
        assert float(size.rstrip("%")) >= 0
        assert error[0] in "+-"


def test_a_run_that_leaves_no_job_to_count_is_refused() -> None:
    done = bench_eta("--jobs", "8", "--clients", "4")
    assert done.returncode == 1
    assert "--jobs: more than twice the clients, 8" in done.stderr
