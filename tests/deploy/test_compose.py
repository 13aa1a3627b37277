"""docker-compose.yml: well-formed, documented, and closed to the outside."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from koala.settings import Settings
from tests.deploy import compose


def tool(name: str) -> str:
    """A program that a Python package brought along."""
    return str(Path(sys.executable).parent / name)


@pytest.mark.parametrize("file", [compose.COMPOSE_FILE, compose.CPU_FILE])
def test_it_is_what_the_compose_specification_allows(file: Path, tmp_path: Path) -> None:
    # The schema is of YAML without Compose's own tags.
    plain = tmp_path / "compose.yml"
    plain.write_text(file.read_text().replace("!reset ", ""))
    command = [tool("check-jsonschema"), "--builtin-schema", "vendor.compose-spec"]
    checked = subprocess.run([*command, str(plain)], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout


def test_the_example_names_every_variable_with_its_default() -> None:
    named = dict(re.findall(r"^#?([A-Z]\w+)=(.*)$", compose.EXAMPLE.read_text(), re.M))
    choice = named.pop("COMPOSE_FILE")
    assert [compose.ROOT / name for name in choice.split(":")] == [
        compose.COMPOSE_FILE,
        compose.CPU_FILE,
    ]
    asked = compose.variables()
    assert named.keys() == asked.keys()
    # The file's place is a suggestion, and each part drains for a time of its own.
    for name in asked.keys() - {"KOALA_API_KEYS_FILE", "KOALA_DRAIN_SECONDS"}:
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


@pytest.mark.parametrize("drain", [None, "0", "7.5", "60", "3600"])
def test_a_stopping_part_has_longer_than_its_drain(drain: str | None) -> None:
    default = Settings().drain_seconds
    for name in ("gateway", "worker"):
        service = compose.services({} if drain is None else {"KOALA_DRAIN_SECONDS": drain})[name]
        given = float(service["environment"]["KOALA_DRAIN_SECONDS"] or default)
        assert compose.seconds(service["stop_grace_period"]) >= given + 5, name


def test_every_container_is_bounded_in_memory_processes_and_temporary_files() -> None:
    for name, service in compose.services({}).items():
        assert service["mem_limit"], name
        assert service["pids_limit"] > 0, name
        [tmpfs] = service["tmpfs"]
        assert "size=" in tmpfs, name


def test_a_gpu_worker_never_draws_on_the_cpu_instead() -> None:
    assert compose.services({})["worker"]["environment"]["KOALA_DEVICE"] == "cuda"


def test_one_more_file_makes_it_the_demo_model_on_the_cpu() -> None:
    with_gpu, without = compose.services({}), compose.services({}, cpu=True)
    # The same services, so that every command of the guide holds for both.
    assert without.keys() == with_gpu.keys()
    assert "resources" not in without["worker"]["deploy"]
    assert without["worker"]["build"]["args"] == {
        "TORCH_INDEX": "https://download.pytorch.org/whl/cpu"
    }
    assert without["worker"]["image"] != with_gpu["worker"]["image"]
    assert without["worker"]["environment"]["KOALA_DEVICE"] == "cpu"
    for name in ("gateway", "worker"):
        assert without[name]["environment"]["KOALA_MODEL"] == "koala-demo"


def test_every_mounted_folder_of_ours_exists() -> None:
    for name, service in compose.services({}).items():
        for volume in service.get("volumes", []):
            source = volume["source"] if isinstance(volume, dict) else volume.split(":")[0]
            if source.startswith("./"):
                assert (compose.ROOT / source).is_dir(), f"{name}: {source}"
