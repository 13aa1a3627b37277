"""Whether the aims are met, from a run's figures."""

import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from PIL import Image
from typer.testing import CliRunner

from bench.__main__ import app
from bench.aims import judge
from bench.contenders import Contender
from bench.report import BEGIN, END, NoMarks, write
from bench.results import CurvePoint, IdleRun, RawRun, Results, Run
from bench.workloads import Workload


def run(contender: Contender, workload: Workload, **changes: Any) -> Run:
    fields: dict[str, Any] = {
        "contender": contender,
        "workload": workload,
        "load": "closed",
        "round": 0,
        "seconds": 4.0,
        "images": 40,
        "images_per_second": 10.0,
        "unet_rows_per_second": 100.0,
        "p50": 1.0,
        "p95": 2.0,
        "queue_wait_p50": None,
        "queue_wait_p95": None,
        "errors": {},
        "latencies": [1.0, 2.0],
        "generator_cpu": 0.05,
    }
    return Run(**fields | changes)


def results(**changes: Any) -> Results:
    fields: dict[str, Any] = {
        "created": "2026-01-01T00:00:00+00:00",
        "version": "1",
        "machine": {"cpu": "abacus"},
        "torch_threads": 2,
        "batch_rows": 32,
        "rounds": 3,
    }
    return Results(**fields | changes)


def raw(workload: Workload, rows: int, number: int = 0) -> RawRun:
    return RawRun(workload=workload, round=number, seconds=1.0, images=1, unet_rows=rows)


def verdicts(measured: Results) -> dict[str, tuple[float | None, bool | None]]:
    return {aim.text: (aim.value, aim.is_met) for aim in judge(measured)}


OF_RAW = "`uniform` at saturation, of the raw limit"


def test_throughput_is_compared_at_our_best_level_within_each_round() -> None:
    runs = [
        run(Contender.OURS, Workload.UNIFORM, clients=clients, round=n, unet_rows_per_second=rows)
        for n, speed in enumerate((1.0, 0.5, 2.0))
        for clients, rows in ((1, 30 * speed), (16, 91 * speed), (32, 90 * speed))
    ]
    limits = [raw(Workload.UNIFORM, rows, n) for n, rows in enumerate((100, 50, 200))]

    value, is_met = verdicts(results(runs=runs, raw=limits))[OF_RAW]

    # A machine that is half as fast for a round is so for both sides.
    assert value == pytest.approx(0.91)
    assert is_met is True


def test_an_aim_is_missed_by_a_figure_on_its_wrong_side() -> None:
    def of_p95(ours: float, theirs: float) -> bool | None:
        runs = [
            run(Contender.OURS, Workload.MIXED, load="poisson", rate=5.0, p95=ours),
            run(Contender.WHOLE, Workload.MIXED, load="poisson", rate=5.0, p95=theirs),
        ]
        aim = "p95 of `mixed` Poisson arrivals, of that of whole requests"
        return verdicts(results(runs=runs))[aim][1]

    assert of_p95(1.0, 2.0) is True
    assert of_p95(1.1, 2.0) is False

    slow = [
        run(Contender.OURS, Workload.MIXED, clients=8, unet_rows_per_second=84.0),
        run(Contender.LITSERVE, Workload.MIXED, clients=8, unet_rows_per_second=42.0),
    ]
    found = verdicts(results(runs=slow, raw=[raw(Workload.MIXED, 100)]))
    assert found["`mixed` at saturation, of the raw limit"] == (pytest.approx(0.84), False)
    assert found["`mixed` at saturation, times LitServe"] == (pytest.approx(2.0), True)


def test_idle_requests_are_compared_by_their_medians_in_milliseconds() -> None:
    idle = [
        IdleRun(contender=Contender.OURS, round=0, latencies=[0.120, 0.125, 0.900]),
        IdleRun(contender=Contender.LOCK, round=0, latencies=[0.100, 0.111, 0.112]),
    ]
    aim = "a single request when idle, slower than FastAPI with a lock"

    assert verdicts(results(idle=idle))[aim] == (pytest.approx(14.0), False)


def test_what_was_not_measured_is_neither_met_nor_missed() -> None:
    assert set(verdicts(results()).values()) == {(None, None)}


def measured() -> Results:
    return results(
        runs=[
            run(Contender.OURS, Workload.UNIFORM, clients=8),
            run(Contender.LITSERVE, Workload.MIXED, load="poisson", rate=5.0, unfinished=[7.0]),
        ],
        raw=[raw(Workload.UNIFORM, 110)],
        curve=[
            CurvePoint(batch=1, unet_row_ms=12.0, decode_image_ms=8.0),
            CurvePoint(batch=32, unet_row_ms=3.0, decode_image_ms=4.0),
        ],
    )


def test_the_report_replaces_what_stands_between_its_marks(tmp_path: Path) -> None:
    document = tmp_path / "performance.md"
    document.write_text(f"before\n{BEGIN}\nold figures\n{END}\nafter\n")

    write(measured(), document)
    once = document.read_text()
    write(measured(), document)

    assert document.read_text() == once
    assert once.startswith(f"before\n{BEGIN}\n") and once.endswith(f"{END}\nafter\n")
    assert "old figures" not in once
    assert "(performance/throughput.png)" in once
    assert "| `uniform` at saturation, of the raw limit | at least 0.9 | 0.91 | met |" in once
    assert "| `mixed` at saturation, times LitServe | at least 2 |  | not measured |" in once
    assert "| koala-serve | 8 | 10.00 | 1.00 | 2.00 |  |  | 0 |" in once
    assert "1 of 41" in once
    assert "takes 4.0 times less than alone" in once


def test_the_links_of_a_report_lead_to_its_plots_wherever_the_results_lie(tmp_path: Path) -> None:
    document = tmp_path / "docs" / "my (best) figures.md"
    document.parent.mkdir()
    document.write_text(f"{BEGIN}\n{END}\n")
    (tmp_path / "else where").mkdir()
    elsewhere = tmp_path / "else where" / "results.json"
    elsewhere.write_text(measured().model_dump_json())

    done = CliRunner().invoke(app, ["report", str(elsewhere), "--document", str(document)])

    assert done.exit_code == 0, done.output
    links = re.findall(r"!\[[\w ]+\]\((\S+)\)", document.read_text())
    assert len(links) == 2
    for link in links:
        with Image.open(document.parent / unquote(link)) as plot:
            assert plot.format == "PNG"


def test_a_document_without_marks_is_left_alone(tmp_path: Path) -> None:
    document = tmp_path / "performance.md"
    document.write_text("nothing here")

    with pytest.raises(NoMarks, match="results"):
        write(measured(), document)
    assert document.read_text() == "nothing here"
