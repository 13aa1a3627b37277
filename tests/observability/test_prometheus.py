"""The deployed configuration: what promtool says of it, and what a real Prometheus makes of it."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from bench.dashboard import checks, picture, prometheus
from bench.dashboard.panels import DASHBOARD, panels
from bench.dashboard.prometheus import CONFIGURATION, NoPrometheus, promtool
from koala.settings import Settings
from tests.deploy import compose
from tests.observability.conftest import Observed

GRAFANA = DASHBOARD.parents[1]


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def rules(kind: str) -> set[str]:
    groups = load(CONFIGURATION / "rules.yml")["groups"]
    return {rule[kind] for group in groups for rule in group["rules"] if kind in rule}


@pytest.mark.parametrize(
    "arguments",
    [
        ["check", "config", "--lint-fatal", "prometheus.yml"],
        ["check", "rules", "--lint-fatal", "rules.yml"],
        ["test", "rules", "rules_test.yml"],
    ],
)
def test_the_configuration_and_the_rules_pass_promtool(arguments: list[str]) -> None:
    promtool(*arguments)


def test_a_fault_that_promtool_finds_is_told() -> None:
    with pytest.raises(NoPrometheus, match="no-such-rules"):
        promtool("check", "rules", "no-such-rules.yml")


def test_a_missing_prometheus_is_told_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(prometheus.sys, "executable", "/nowhere/python")
    with pytest.raises(NoPrometheus, match="promtool is not installed: run `make test`"):
        promtool("--version")


def test_every_alert_is_tried_both_when_it_fires_and_when_it_keeps_still() -> None:
    tried: dict[bool, set[str]] = {True: set(), False: set()}
    for test in load(CONFIGURATION / "rules_test.yml")["tests"]:
        for case in test.get("alert_rule_test", []):
            tried["exp_alerts" in case].add(case["alertname"])
    assert tried[True] == tried[False] == rules("alert")


def test_the_deployed_targets_have_the_ports_that_the_deployment_sets() -> None:
    [gateways] = load(CONFIGURATION / "targets" / "gateways.yml")
    assert gateways["targets"] == [f"gateway:{Settings.model_fields['port'].default}"]
    assert load(CONFIGURATION / "targets" / "workers.yml") == []
    jobs = load(CONFIGURATION / "prometheus.yml")["scrape_configs"]
    # One name, but a target for each container that has it.
    [names] = next(job["dns_sd_configs"] for job in jobs if job["job_name"] == "koala-worker")
    assert names["names"] == ["worker"]
    assert str(names["port"]) == compose.image("worker")["env"]["KOALA_METRICS_PORT"]


def test_a_real_prometheus_scrapes_gateway_and_worker(observed: Observed) -> None:
    assert checks.until_clean(lambda: checks.targets_down(observed.prometheus)) == []
    jobs = {name.split()[0] for name in observed.prometheus.targets()}
    assert jobs == {"koala-gateway", "koala-worker"}


def test_every_recording_rule_has_a_value_and_every_alert_can_be_evaluated(
    observed: Observed,
) -> None:
    assert observed.prometheus.rules("recording").keys() == rules("record")
    assert observed.prometheus.rules("alerting").keys() == rules("alert")
    assert checks.until_clean(lambda: checks.rules_without_value(observed.prometheus)) == []


def test_every_query_of_the_dashboard_has_data(observed: Observed) -> None:
    found = checks.until_clean(lambda: checks.queries_without_data(observed.prometheus, "1m"))
    assert found == []
    # What is excepted for want of a GPU must not grow unseen.
    excepted = {panel.title for panel in panels("1m") for q in panel.queries if q.needs_gpu}
    assert excepted == {"GPU memory", "GPU load", "GPU power and temperature"}


def test_a_query_without_data_is_found(observed: Observed) -> None:
    assert not checks.has_data(observed.prometheus, "koala_nothing")
    assert not checks.has_data(observed.prometheus, "vector(0) / 0")
    with pytest.raises(NoPrometheus, match="parse error"):
        checks.has_data(observed.prometheus, "rate(")


def test_the_panels_are_drawn_from_what_prometheus_has(observed: Observed, tmp_path: Path) -> None:
    path = tmp_path / "dashboard.png"
    picture.draw(observed.prometheus, observed.began, observed.began + 30, "15s", path)
    with Image.open(path) as image:
        assert image.width > 500
        assert len(image.convert("RGB").getcolors(2**24) or []) > 50


def test_grafana_finds_the_dashboard_and_its_data_source() -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    [source] = load(GRAFANA / "provisioning/datasources/prometheus.yml")["datasources"]
    [provider] = load(GRAFANA / "provisioning/dashboards/koala.yml")["providers"]
    assert (source["type"], source["url"]) == ("prometheus", "http://prometheus:9090")
    assert provider["options"]["path"] == "/var/lib/grafana/dashboards"
    variables = {variable["name"] for variable in dashboard["templating"]["list"]}
    assert variables == {"datasource", "worker"}
    for panel in dashboard["panels"]:
        if panel["type"] != "row":
            assert panel["description"]
            assert {t["datasource"]["uid"] for t in panel["targets"]} == {"${datasource}"}


def test_no_two_panels_share_an_id_or_a_place() -> None:
    found = json.loads(DASHBOARD.read_text())["panels"]
    assert len({panel["id"] for panel in found}) == len(found)
    taken = Counter(
        (x, y)
        for place in (panel["gridPos"] for panel in found)
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    )
    assert set(taken.values()) == {1}
    assert max(x for x, _ in taken) == 23
