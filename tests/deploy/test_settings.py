"""Every setting is documented, and reaches the parts that read it, wherever they run.

A new setting fails this until it has a line in README.md, ``.env.example`` and the anchor
``x-settings`` of docker-compose.yml; in Kubernetes the ConfigMap hands on what is put into it. One
that is to be different needs an entry below that says why.
"""

import re
from typing import Any

import pytest
from pydantic import SecretStr

from koala.settings import Settings
from tests.deploy import compose
from tests.deploy.test_kubernetes import by_name, container

SETTINGS = {f"KOALA_{name.upper()}" for name in Settings.model_fields}
SECRETS = {
    f"KOALA_{name.upper()}"
    for name, field in Settings.model_fields.items()
    if SecretStr in (field.annotation, *getattr(field.annotation, "__args__", ()))
}
PARTS = {"gateway", "worker"}

# Not for the operator of containers to set.
FIXED_BY_THE_IMAGE = {
    "KOALA_DATA_DIR": "where the volume is mounted",
    "KOALA_HOST": "a published port reaches no loopback address",
    "KOALA_METRICS_HOST": "Prometheus is another container",
    "KOALA_METRICS_PORT": "Prometheus knows it; each container has ports of its own",
}
# Read by Compose itself.
FOR_COMPOSE = {
    "KOALA_PORT": "the published port; inside it is always 8000",
    "KOALA_WORKERS": "how many containers there are",
}
ONE_PART_ONLY = {
    "KOALA_API_KEYS": ("gateway", "a secret that workers do not need"),
    "KOALA_API_KEYS_FILE": ("gateway", "only there the volume of keys is mounted"),
    "KOALA_WEBHOOK_SECRET": ("gateway", "a secret that workers do not need"),
    "KOALA_DEVICE": ("worker", "each kind of worker has a default of its own"),
    "KOALA_PREVIEW_DECODER": ("worker", "only there the folder is mounted"),
    "KOALA_SAFETY_CHECKER": ("worker", "only there the folder is mounted"),
}
# A folder of the machine, and where containers find it.
FOLDERS = {
    "KOALA_LORA_DIR": "/loras",
    "KOALA_PREVIEW_DECODER": "/preview-decoder",
    "KOALA_SAFETY_CHECKER": "/safety-checker",
}
# What a pod's own entry says goes before the ConfigMap.
FIXED_BY_THE_POD = {
    "KOALA_REDIS_URL": "from the secret, beside the scaler's address",
    "KOALA_REDIS_PASSWORD": "a secret",
    "KOALA_API_KEYS_FILE": "where the secret is mounted",
    "KOALA_DRAIN_SECONDS": "goes with terminationGracePeriodSeconds",
}


def parts_of(name: str) -> set[str]:
    """The services that a setting has to reach."""
    return {ONE_PART_ONLY[name][0]} if name in ONE_PART_ONLY else PARTS


def handed_on() -> list[str]:
    return sorted(SETTINGS - FIXED_BY_THE_IMAGE.keys() - FOR_COMPOSE.keys())


def test_the_exceptions_are_settings() -> None:
    tables: list[dict[str, Any]] = [
        FIXED_BY_THE_IMAGE,
        FOR_COMPOSE,
        ONE_PART_ONLY,
        FOLDERS,
        FIXED_BY_THE_POD,
    ]
    for table in tables:
        assert table.keys() <= SETTINGS


def test_no_setting_is_missing_anywhere() -> None:
    example = set(re.findall(r"^#?([A-Z]\w+)=", compose.EXAMPLE.read_text(), re.M))
    readme = set(re.findall(r"^\| `(\w+)` \|", (compose.ROOT / "README.md").read_text(), re.M))
    asked = compose.variables().keys()
    missing = [
        f"{name} in {place}"
        for place, names, due in (
            ("README.md", readme, SETTINGS),
            (".env.example", example, SETTINGS - FIXED_BY_THE_IMAGE.keys()),
            ("docker-compose.yml", asked, SETTINGS - FIXED_BY_THE_IMAGE.keys()),
        )
        for name in sorted(due - names)
    ]
    assert missing == []


@pytest.mark.parametrize("cpu", [False, True], ids=["gpu", "cpu"])
@pytest.mark.parametrize("name", handed_on())
def test_a_setting_in_the_env_file_reaches_the_containers_that_read_it(
    name: str, cpu: bool
) -> None:
    value = "/some/folder" if name in FOLDERS else "a-value"
    services = compose.services({name: value}, cpu=cpu)
    for part in PARTS:
        given = services[part]["environment"].get(name)
        if part not in parts_of(name):
            assert given is None, part
        elif (name, part, cpu) == ("KOALA_DEVICE", "worker", True):
            assert given == "cpu"
        else:
            assert given == FOLDERS.get(name, value), part


@pytest.mark.parametrize("name", sorted(FOLDERS))
def test_a_folder_is_mounted_where_its_setting_points(name: str) -> None:
    for part in parts_of(name):
        [mount] = [
            volume
            for volume in compose.services({name: "./some/folder"})[part]["volumes"]
            if isinstance(volume, dict) and volume["target"] == FOLDERS[name]
        ]
        assert mount["source"] == "./some/folder"
        assert mount["read_only"] is True
        # An empty folder in place of one that is not there would be ignored in silence.
        assert mount["bind"] == {"create_host_path": False}


def test_a_model_in_a_folder_is_there_for_both_parts() -> None:
    for part in PARTS:
        volumes = compose.services({"MODELS_VOLUME": "/srv/models"})[part]["volumes"]
        assert any(str(volume).startswith("/srv/models:/models") for volume in volumes), part


def test_what_the_image_fixes_is_in_the_image() -> None:
    for part in PARTS:
        assert FIXED_BY_THE_IMAGE.keys() <= compose.image(part)["env"].keys()


def test_compose_reads_its_own() -> None:
    assert compose.services({"KOALA_PORT": "81"})["gateway"]["ports"] == ["127.0.0.1:81:8000"]
    assert compose.services({"KOALA_WORKERS": "3"})["worker"]["deploy"]["replicas"] == "3"


@pytest.mark.parametrize("part", sorted(PARTS))
def test_a_setting_in_the_config_map_reaches_its_pods(part: str) -> None:
    own = container(part)
    assert {"configMapRef": {"name": "koala"}} in own["envFrom"]
    assert {entry["name"] for entry in own["env"]} & SETTINGS <= FIXED_BY_THE_POD.keys()
    image = compose.image(part)["env"].keys() & SETTINGS
    assert image <= FIXED_BY_THE_IMAGE.keys()


def test_no_secret_is_in_the_config_map_and_each_can_be_given_by_a_secret() -> None:
    assert not by_name("ConfigMap")["koala"]["data"].keys() & SECRETS
    for part in PARTS:
        own = container(part)
        from_secrets = {
            entry["name"] for entry in own["env"] if "secretKeyRef" in entry.get("valueFrom", {})
        }
        if part in parts_of("KOALA_WEBHOOK_SECRET"):
            optional = {"secretRef": {"name": "koala-gateway", "optional": True}}
            assert optional in own["envFrom"]
            from_secrets |= {"KOALA_API_KEYS", "KOALA_WEBHOOK_SECRET"}
        assert {name for name in SECRETS if part in parts_of(name)} <= from_secrets
