"""``koala simulate`` and ``koala measure`` as they are typed."""

import json
import os
import subprocess
import sys
from pathlib import Path

PROFILE = ("--profile", "3060ti/koala-lightning-700m", "--requests", "40")


def koala(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "koala", *arguments],
        env={**os.environ, "COLUMNS": "80", **env},
        capture_output=True,
        text=True,
        timeout=500,
    )


def test_simulate_prints_a_table_and_what_it_rests_on() -> None:
    done = koala("simulate", *PROFILE, "--clients", "1,4")
    assert done.returncode == 0, done.stderr
    [row] = [line.split() for line in done.stdout.splitlines() if line.startswith("1 client ")]
    # 2.88 s is the published latency; alone, a client gets 60 / 2.88 images a minute.
    assert row[2:] == ["step-level", "20.8", "2.88", "2.88", "2.88", "0.00", "2.0", "100%"]
    assert "Derived, not measured: published is 2.88 s" in done.stdout
    assert "Memory is not modelled" in done.stdout


def test_simulate_gives_json_to_programs() -> None:
    done = koala("simulate", *PROFILE, "--rate", "5", "--strategy", "one-by-one", "--json")
    report = json.loads(done.stdout)
    [point] = report["points"]
    assert point["load"] == {"per_minute": 5.0}
    assert point["strategy"] == "one-by-one"
    assert point["p95_latency"] >= point["p50_latency"] > 2.8
    assert report["max_rows"] == {"1024x1024": 2}


def test_simulate_writes_the_same_plot_for_the_same_figures(tmp_path: Path) -> None:
    plots = []
    for name in ("one.svg", "two.svg"):
        done = koala("simulate", *PROFILE, "--clients", "1,4", "-o", str(tmp_path / name))
        assert done.returncode == 0, done.stderr
        plots.append((tmp_path / name).read_bytes())
    assert b"<svg" in plots[0]
    assert plots[0] == plots[1]


def test_a_plot_without_matplotlib_names_the_extra(tmp_path: Path) -> None:
    absent = "raise ModuleNotFoundError('No module named matplotlib', name='matplotlib')"
    (tmp_path / "matplotlib.py").write_text(absent)
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    done = koala("simulate", *PROFILE, "-o", str(tmp_path / "plan.svg"), PYTHONPATH=path)
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert "--output" in line
    assert "pip install 'koala-serve[plot]'" in line


def test_a_plot_that_cannot_be_written_is_refused_before_anything_is_simulated(
    tmp_path: Path,
) -> None:
    for name, reason in (("plan.gif", ".svg, .png, .pdf"), ("nowhere/plan.svg", "no such folder")):
        done = koala("simulate", *PROFILE, "-o", str(tmp_path / name))
        assert done.returncode == 1
        [line] = done.stderr.splitlines()
        assert "--output" in line
        assert reason in line


def test_a_measured_machine_can_be_simulated(tmp_path: Path) -> None:
    path = tmp_path / "curve.json"
    done = koala(
        "measure", "-o", str(path), "--size", "48x48", KOALA_DEVICE="cpu", KOALA_MAX_BATCH_ROWS="2"
    )
    assert done.returncode == 0, done.stderr
    curves = json.loads(path.read_text())
    assert curves["name"] == "koala-demo on cpu"
    [size] = curves["sizes"]
    assert (size["size"], list(size["step_seconds"])) == ([48, 48], ["1", "2"])
    done = koala("simulate", "--curve", str(path), "--clients", "1", "--requests", "10", "--json")
    [point, *_] = json.loads(done.stdout)["points"]
    tick = size["step_seconds"]["2"] + curves["tick_overhead_seconds"]
    assert abs(point["mean_latency"] - 10 * tick - size["decode_seconds"]) < 1e-6


def test_measure_refuses_a_size_that_the_model_does_not_draw(tmp_path: Path) -> None:
    path = tmp_path / "curve.json"
    done = koala("measure", "-o", str(path), "--size", "50x48", KOALA_DEVICE="cpu")
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert "--size: 50x48" in line
    assert not path.exists()
