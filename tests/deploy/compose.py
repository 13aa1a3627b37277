"""docker-compose.yml and the Dockerfile as Docker reads them, as far as they go here."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import yaml

ROOT: Final = Path(__file__).parent.parent.parent
COMPOSE_FILE: Final = ROOT / "docker-compose.yml"
CPU_FILE: Final = ROOT / "deploy" / "compose.cpu.yml"
EXAMPLE: Final = ROOT / ".env.example"
# ${NAME}, ${NAME:-default}, ${NAME:+replacement}; $$ is a dollar. The innermost come first.
_VARIABLE: Final = re.compile(r"\$(?:(\$)|\{(\w+)(?::([-+])([^${}]*))?\})")
_DOLLAR: Final = "\0"


class _Loader(yaml.SafeLoader):
    """YAML with Compose's tags: ``!reset`` removes what another file says."""


_Loader.add_constructor("!reset", lambda loader, node: _RESET)
_RESET: Final = object()


def variables() -> dict[str, str | None]:
    """What the files of Compose ask the environment for, with the defaults of the first."""
    asked: dict[str, str | None] = {}
    for file in (COMPOSE_FILE, CPU_FILE):
        text = file.read_text()
        while found := [each for each in _VARIABLE.findall(text) if not each[0]]:
            for _, name, kind, word in found:
                asked.setdefault(name, word if kind == "-" else None)
            text = _VARIABLE.sub(lambda each: "$$" if each[1] else "", text)
    for service in services({}).values():
        for name, value in service.get("environment", {}).items():
            if value is None:
                asked.setdefault(name, None)
    return asked


def services(environment: Mapping[str, str], *, cpu: bool = False) -> dict[str, dict[str, Any]]:
    """The services, with variables filled in; environment entries without a value stay ``None``.

    Args:
        environment: What ``.env`` sets.
        cpu: With deploy/compose.cpu.yml over it.
    """
    content = yaml.load(COMPOSE_FILE.read_text(), _Loader)["services"]
    if cpu:
        content = _merge(content, yaml.load(CPU_FILE.read_text(), _Loader)["services"])
    filled: dict[str, dict[str, Any]] = _fill(content, environment)
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


def seconds(duration: str) -> float:
    """A duration such as ``45s``."""
    return float(duration.removesuffix("s"))


def _merge(base: Any, over: Any) -> Any:
    if isinstance(base, dict) and isinstance(over, dict):
        merged = {**base, **{name: _merge(base.get(name), value) for name, value in over.items()}}
        return {name: value for name, value in merged.items() if value is not _RESET}
    return over


def _fill(part: Any, environment: Mapping[str, str]) -> Any:
    if isinstance(part, dict):
        return {name: _fill(value, environment) for name, value in part.items()}
    if isinstance(part, list):
        return [_fill(value, environment) for value in part]
    if isinstance(part, str):
        return _interpolated(part, environment)
    return part


def _interpolated(text: str, environment: Mapping[str, str]) -> str:
    def value(found: re.Match[str]) -> str:
        if found[1]:
            return _DOLLAR
        given = environment.get(found[2]) or ""
        if found[3] == "+":
            return found[4] if given else ""
        # What is filled in is not looked at again.
        return given.replace("$", _DOLLAR) or found[4] or ""

    while _VARIABLE.search(text):
        text = _VARIABLE.sub(value, text)
    return text.replace(_DOLLAR, "$")
