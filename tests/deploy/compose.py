"""docker-compose.yml and the Dockerfile as Docker reads them, as far as they go here."""

import json
import re
from pathlib import Path
from typing import Any, Final

import yaml

ROOT: Final = Path(__file__).parent.parent.parent
COMPOSE_FILE: Final = ROOT / "docker-compose.yml"
_VARIABLE: Final = re.compile(r"\$(?:(\$)|\{(\w+)(?::-([^}]*))?\})")


def env_file(path: Path) -> dict[str, str]:
    """The variables that a file sets."""
    lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
    return dict(line.split("=", 1) for line in lines)


def variables() -> dict[str, str | None]:
    """What docker-compose.yml asks the environment for, with its defaults."""
    asked = {name: default for _, name, default in _VARIABLE.findall(COMPOSE_FILE.read_text())}
    asked.pop("", None)
    for service in services({}).values():
        asked |= {
            name: None
            for name, value in service.get("environment", {}).items()
            if value is None and name not in asked
        }
    return asked


def services(environment: dict[str, str]) -> dict[str, dict[str, Any]]:
    """The services, with variables filled in; environment entries without a value stay ``None``."""
    content = yaml.safe_load(COMPOSE_FILE.read_text())
    filled: dict[str, dict[str, Any]] = _fill(content["services"], environment)
    for service in filled.values():
        for name, value in service.get("environment", {}).items():
            if value is None:
                service["environment"][name] = environment.get(name)
    return filled


def image(target: str) -> dict[str, Any]:
    """``env``, ``cmd`` and ``healthcheck`` of a target of the Dockerfile."""
    text = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
    stages = {
        name: (base, body)
        for base, name, body in re.findall(
            r"^FROM (\S+) AS (\S+)\n(.*?)(?=^FROM|\Z)", text, re.M | re.S
        )
    }
    env: dict[str, str] = {}
    cmd, healthcheck = [], []
    lineage = [target]
    while stages[lineage[0]][0] in stages:
        lineage.insert(0, stages[lineage[0]][0])
    for stage in lineage:
        body = stages[stage][1]
        for line in re.findall(r"^ENV (.*)$", body, re.M):
            env |= dict(pair.split("=", 1) for pair in line.split())
        for found in re.findall(r"^CMD (\[.*\])$", body, re.M):
            cmd = json.loads(found)
        for found in re.findall(r"^HEALTHCHECK .*CMD (\[.*\])$", body, re.M):
            healthcheck = json.loads(found)
    return {"env": env, "cmd": cmd, "healthcheck": healthcheck}


def _fill(part: Any, environment: dict[str, str]) -> Any:
    if isinstance(part, dict):
        return {name: _fill(value, environment) for name, value in part.items()}
    if isinstance(part, list):
        return [_fill(value, environment) for value in part]
    if isinstance(part, str):
        return _VARIABLE.sub(
            lambda found: "$" if found[1] else environment.get(found[2]) or found[3] or "", part
        )
    return part
