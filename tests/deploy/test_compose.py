"""docker-compose.yml: well-formed, documented, and closed to the outside."""

import re
import subprocess
import sys
from pathlib import Path

from koala.settings import Settings
from tests.deploy import compose

EXAMPLE = compose.ROOT / ".env.example"


def tool(name: str) -> str:
    """A program that a Python package brought along."""
    return str(Path(sys.executable).parent / name)


def test_it_is_what_the_compose_specification_allows() -> None:
    command = [tool("check-jsonschema"), "--builtin-schema", "vendor.compose-spec"]
    checked = subprocess.run(
        [*command, str(compose.COMPOSE_FILE)], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stdout


def test_the_example_names_every_variable_with_its_default() -> None:
    named = dict(re.findall(r"^#?([A-Z]\w+)=(.*)$", EXAMPLE.read_text(), re.M))
    asked = compose.variables()
    assert named.keys() == asked.keys()
    # The file's place is a suggestion; the CPU's image has a tag of its own.
    suggested = {"KOALA_API_KEYS_FILE", "KOALA_WORKER_IMAGE"}
    for name in asked.keys() - suggested:
        assert named[name] == (asked[name] or ""), name


def test_every_koala_variable_is_a_setting() -> None:
    settings = {f"KOALA_{name.upper()}" for name in Settings.model_fields}
    for name, service in compose.services({}).items():
        ours = {key for key in service.get("environment", {}) if key.startswith("KOALA_")}
        assert ours <= settings, name


def test_the_defaults_are_valid_settings() -> None:
    for name in ("gateway", "worker"):
        environment = compose.services({})[name]["environment"]
        given = {
            key.removeprefix("KOALA_").lower(): value
            for key, value in environment.items()
            if key.startswith("KOALA_") and value
        }
        Settings.model_validate(given)


def test_nothing_is_published_beyond_this_machine_and_redis_not_at_all() -> None:
    services = compose.services({})
    assert "ports" not in services["redis"]
    for name, service in services.items():
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:"), f"{name} is published on {port}"


def test_every_container_is_without_rights_it_does_not_need() -> None:
    for name, service in compose.services({}).items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name


def test_a_stopping_part_has_longer_than_its_drain() -> None:
    default = Settings().drain_seconds
    for name in ("gateway", "worker", "worker-cpu"):
        service = compose.services({})[name]
        drain = float(service["environment"].get("KOALA_DRAIN_SECONDS") or default)
        assert int(service["stop_grace_period"].removesuffix("s")) >= drain + 5, name


def test_without_a_gpu_one_file_chooses_the_demo_model() -> None:
    environment = compose.env_file(compose.ROOT / "deploy" / "cpu.env")
    services = compose.services(environment)
    assert services["worker"]["deploy"]["replicas"] == "0"
    assert environment["COMPOSE_PROFILES"] in services["worker-cpu"]["profiles"]
    for name in ("gateway", "worker-cpu"):
        assert services[name]["environment"]["KOALA_MODEL"] == "koala-demo"


def test_every_mounted_folder_of_ours_exists() -> None:
    for name, service in compose.services({}).items():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            if source.startswith("./"):
                assert (compose.ROOT / source).is_dir(), f"{name}: {source}"
