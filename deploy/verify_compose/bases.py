"""Base images without a registry: root file systems by debootstrap, under the names wanted."""

import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from deploy.verify_compose.engine import Engine, Failed

_DROPPED: Final = (
    "var/cache/apt",
    "var/lib/apt/lists",
    "var/log",
    "usr/share/doc",
    "usr/share/man",
    "usr/share/locale",
)
# The user that docker-compose.yml and the manifests name.
_VALKEY_USER: Final = ("valkey:x:999:1000::/data:/usr/sbin/nologin", "valkey:x:1000:")


def make(engine: Engine, work: Path, names: dict[str, str], overlay: Path | None) -> list[str]:
    """Import the images that are not there yet; what was made.

    Args:
        engine: Where they are imported.
        work: For the root file systems.
        names: The tags of ``python``, ``valkey`` and ``prometheus``.
        overlay: A folder that is laid over Python's: certificates, pip's configuration.
    """
    missing = {
        kind: tag
        for kind, tag in names.items()
        if engine.run("image", "inspect", tag, check=False).returncode
    }
    if "python" in missing:
        root = _bootstrap(work, "bookworm", ["ca-certificates", "python3", "python3-venv"])
        if overlay is not None:
            shutil.copytree(overlay, root, dirs_exist_ok=True)
        _import(engine, root, missing["python"], ['CMD ["python3"]', "ENV LANG=C.UTF-8"])
    if missing.keys() & {"valkey", "prometheus"}:
        root = _bootstrap(work, "trixie", ["valkey-server", "prometheus"])
        for file, line in zip(("passwd", "group"), _VALKEY_USER, strict=True):
            path = root / "etc" / file
            kept = re.sub(r"^valkey:.*\n", "", path.read_text(), flags=re.M)
            path.write_text(f"{kept}{line}\n")
        for name, owner in (("data", (999, 1000)), ("prometheus", (65534, 65534))):
            (root / name).mkdir()
            shutil.chown(root / name, *owner)
        for kind, changes in _SERVERS.items():
            if kind in missing:
                _import(engine, root, missing[kind], changes)
    return [f"{tag} ({kind})" for kind, tag in missing.items()]


_SERVERS: Final[dict[str, Sequence[str]]] = {
    "valkey": ['CMD ["valkey-server"]', "VOLUME /data", "WORKDIR /data"],
    "prometheus": [
        'ENTRYPOINT ["/usr/bin/prometheus"]',
        'CMD ["--config.file=/etc/prometheus/prometheus.yml", "--storage.tsdb.path=/prometheus"]',
        "VOLUME /prometheus",
        "WORKDIR /prometheus",
        "USER 65534:65534",
    ],
}


def _bootstrap(work: Path, suite: str, packages: Sequence[str]) -> Path:
    root = work / f"root-{suite}"
    shutil.rmtree(root, ignore_errors=True)
    command = ["debootstrap", "--variant=minbase", f"--include={','.join(packages)}", suite]
    with (work / f"debootstrap-{suite}.log").open("wb") as log:
        if subprocess.run([*command, str(root)], stdout=log, stderr=log, check=False).returncode:
            raise Failed(f"debootstrap {suite} failed: see {log.name}")
    for part in _DROPPED:
        shutil.rmtree(root / part, ignore_errors=True)
    (root / "tmp").chmod(0o1777)
    return root


def _import(engine: Engine, root: Path, tag: str, changes: Sequence[str]) -> None:
    options = [option for change in changes for option in ("--change", change)]
    with subprocess.Popen(
        ["tar", "-C", str(root), "--numeric-owner", "-c", "."], stdout=subprocess.PIPE
    ) as tar:
        done = subprocess.run(
            ["docker", "import", *options, "-", tag],
            env=engine.environment,
            stdin=tar.stdout,
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode:
        raise Failed(f"docker import {tag}: {done.stderr}")
