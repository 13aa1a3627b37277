"""The Kubernetes manifests: valid, consistent with the code, and each reference has its target."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from cloudcoil.models.keda.v1alpha1 import ScaledObject, TriggerAuthentication

from koala.keys import Keys
from koala.settings import Settings
from tests.deploy import compose

FOLDER = compose.ROOT / "deploy" / "kubernetes"
KUSTOMIZATIONS = sorted(FOLDER.rglob("kustomization.yaml"))
MANIFESTS = sorted(path for path in FOLDER.rglob("*.yaml") if path not in KUSTOMIZATIONS)
KEDA = {"ScaledObject": ScaledObject, "TriggerAuthentication": TriggerAuthentication}
MADE_BEFOREHAND = {"koala-redis", "koala-api-keys", "koala-s3", "koala-hub", "koala-gateway"}


def objects(paths: list[Path] = MANIFESTS) -> Iterator[dict[str, Any]]:
    """All objects of some files."""
    for path in paths:
        yield from yaml.safe_load_all(path.read_text())


def by_name(kind: str) -> dict[str, dict[str, Any]]:
    """The objects of a kind."""
    return {each["metadata"]["name"]: each for each in objects() if each["kind"] == kind}


def container(name: str) -> dict[str, Any]:
    """The container of one of our deployments."""
    found: dict[str, Any] = by_name("Deployment")[name]["spec"]["template"]["spec"]["containers"][0]
    return found


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: str(path.relative_to(FOLDER)))
def test_every_manifest_fits_its_schema(path: Path) -> None:
    for manifest in objects([path]):
        if manifest["kind"] in KEDA:
            KEDA[manifest["kind"]].model_validate(manifest)
        else:
            kubernetes_validate.validate(manifest, "1.33", strict=True)


def test_every_kustomization_names_files_that_exist_and_leaves_none_out() -> None:
    for path in KUSTOMIZATIONS:
        named = {
            (path.parent / name).resolve() for name in yaml.safe_load(path.read_text())["resources"]
        }
        assert all(name.exists() for name in named), path
        assert {each for each in MANIFESTS if each.parent == path.parent} <= named, path


def test_every_patch_and_scaler_has_its_target() -> None:
    deployments, config_maps = by_name("Deployment"), by_name("ConfigMap")
    there = {"Deployment": deployments.keys(), "ConfigMap": config_maps.keys()}
    for path in KUSTOMIZATIONS:
        for patch in yaml.safe_load(path.read_text()).get("patches", []):
            names = set(patch["target"]["name"].split("|"))
            assert names <= there[patch["target"]["kind"]], path
    for scaler in [*by_name("HorizontalPodAutoscaler").values(), *by_name("ScaledObject").values()]:
        assert scaler["spec"]["scaleTargetRef"]["name"] in deployments


def test_every_selector_finds_pods() -> None:
    pods = [
        each["spec"]["template"]["metadata"]["labels"]
        for each in objects()
        if each["kind"] in ("Deployment", "StatefulSet")
    ]
    for kind in ("Service", "PodDisruptionBudget", "NetworkPolicy", "Deployment", "StatefulSet"):
        for name, each in by_name(kind).items():
            spec = each["spec"]
            chosen = spec["podSelector"] if kind == "NetworkPolicy" else spec["selector"]
            assert chosen.get("matchLabels", chosen) in pods, f"{kind} {name}"


def test_every_variable_is_a_setting_and_its_value_valid() -> None:
    config = by_name("ConfigMap")["koala"]["data"]
    for name in ("gateway", "worker"):
        entries = container(name)["env"]
        given = config | {each["name"]: each["value"] for each in entries if "value" in each}
        fields = {
            key.removeprefix("KOALA_").lower(): value
            for key, value in given.items()
            if key.startswith("KOALA_")
        }
        assert fields.keys() <= Settings.model_fields.keys(), name
        Settings.model_validate(fields)


def test_every_secret_is_one_that_the_guide_makes() -> None:
    guide = (compose.ROOT / "docs" / "deploy.md").read_text()
    text = "".join(path.read_text() for path in MANIFESTS)
    for name in MADE_BEFOREHAND:
        assert name in text
        assert f"secret generic {name}" in guide


def test_only_named_clients_reach_the_pods() -> None:
    for name, policy in by_name("NetworkPolicy").items():
        assert "Ingress" in policy["spec"]["policyTypes"]
        for rule in policy["spec"]["ingress"]:
            # A rule or a peer without labels lets every pod of the cluster in.
            assert rule["from"], name
            for peer in rule["from"]:
                labels = [each.get("matchLabels") for each in peer.values()]
                assert any(labels), f"{name}: {peer}"


def test_pods_are_given_longer_than_their_drain() -> None:
    for name, deployment in by_name("Deployment").items():
        env = {each["name"]: each.get("value") for each in container(name)["env"]}
        drain = float(
            env.get("KOALA_DRAIN_SECONDS") or Settings.model_fields["drain_seconds"].default
        )
        grace = deployment["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
        assert grace >= drain + 10, name


def test_workers_scale_by_the_list_that_jobs_wait_in() -> None:
    [trigger] = by_name("ScaledObject")["worker"]["spec"]["triggers"]
    assert trigger["metadata"]["listName"] == Keys(Settings().queue).pending
    env = {each["name"] for each in container("worker")["env"]}
    assert trigger["metadata"]["addressFromEnv"] in env


def test_probes_ask_what_each_part_serves_on_a_port_it_has() -> None:
    for name in ("gateway", "worker"):
        part = container(name)
        ports = {each["name"]: str(each["containerPort"]) for each in part["ports"]}
        for kind in ("startupProbe", "livenessProbe", "readinessProbe"):
            if kind in part:
                assert part[kind]["httpGet"]["path"] == "/healthz"
                assert part[kind]["httpGet"]["port"] in ports
        image = compose.image(name)
        assert any(f":{port}/healthz" in image["healthcheck"][-1] for port in ports.values())


def test_no_container_runs_as_root_or_writes_to_its_image() -> None:
    for each in objects():
        if each["kind"] in ("Deployment", "StatefulSet"):
            pod = each["spec"]["template"]["spec"]
            assert pod["securityContext"]["runAsNonRoot"] is True
            for part in pod["containers"]:
                context = part["securityContext"]
                assert context["readOnlyRootFilesystem"] is True
                assert context["allowPrivilegeEscalation"] is False
                assert context["capabilities"]["drop"] == ["ALL"]
