"""Runs docker-compose.yml on a real engine, and uses it as its owner would.

    python -m deploy.verify_compose [--state FOLDER] [--only WORD] [--no-build]

Needs root, Docker's engine with Compose and buildx, and debootstrap. The engine is one of our own,
with its own socket and data, and is ended at the end. There is no registry: base images are made
from Debian's packages and get the names that the Dockerfile and docker-compose.yml want. Grafana is
not in Debian, so an override leaves it out. Variables:

    BASE_OVERLAY  a folder that is laid over Python's base image: certificates, etc/pip.conf
    TORCH         the requirement for the workers' torch (torch==2.13.0+cpu)
    TORCH_INDEX   where it is, if not where pip looks anyway
"""

import argparse
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from deploy.verify_compose import bases, pods, upgrade
from deploy.verify_compose.checkout import Site
from deploy.verify_compose.checks import CHECKS, VALUES
from deploy.verify_compose.engine import Engine, Failed, need

ROOT: Final = Path(__file__).parents[2]
_NAMES: Final = {
    "python": "python:3.11-slim",
    "valkey": "valkey/valkey:9-alpine",
    "prometheus": "prom/prometheus:v3.5.0",
}
_COMPOSE_FILES: Final = "docker-compose.yml:deploy/compose.cpu.yml:override.yml"
# Of 0.1.0, which had the CPU's worker under a name of its own.
_OLD_IMAGES: Final = {
    "gateway": "koala-verify/gateway:old",
    "worker-cpu": "koala-verify/worker:old",
}
_NEW_IMAGES: Final = {"gateway": "koala-verify/gateway:new", "worker": "koala-verify/worker:new"}


def override(images: dict[str, str], *, is_built: bool) -> str:
    """The file that is laid over docker-compose.yml: no Grafana, and images of our own names."""
    lines = ["services:", "  grafana: !reset null"]
    for service, image in images.items():
        lines += [
            f"  {service}:",
            f"    image: {image}",
            # Threads that wait for each other would take the cores from everything else here.
            "    environment: {OMP_WAIT_POLICY: PASSIVE}",
        ]
        if is_built and service == "worker":
            torch = os.environ.get("TORCH", "torch==2.13.0+cpu")
            index = os.environ.get("TORCH_INDEX", "")
            lines += [f'    build: {{args: {{TORCH: "{torch}", TORCH_INDEX: "{index}"}}}}']
    return "\n".join(lines) + "\n"


class Run:
    """Counts what holds and what does not, and says it line by line."""

    def __init__(self, only: str) -> None:
        self._only = only
        self.failed: list[str] = []

    def step(self, name: str, function: Callable[[], str]) -> None:
        """Run one step; a failure is told and counted, and the rest goes on."""
        name = name.replace("_", " ")
        began = time.monotonic()
        try:
            said = function()
        except Exception as error:
            self.failed.append(name)
            text = str(error) if isinstance(error, Failed) else repr(error)
            print(f"FAILED  {name}: {text}", flush=True)
        else:
            print(f"ok      {name} ({time.monotonic() - began:.0f} s): {said}", flush=True)

    def checks(self, site: Site) -> None:
        """Run the checks of the single box."""
        for each in CHECKS:
            if self._only in each.__name__:
                self.step(each.__name__, lambda each=each: each(site))  # type: ignore[misc]


def build(engine: Engine, folder: Path) -> str:
    """Build both images as the guide says, with the engine."""
    site = Site(engine, folder, _COMPOSE_FILES)
    site.compose("build", timeout=3600)
    return ", ".join(_NEW_IMAGES.values())


def build_old(engine: Engine, folder: Path) -> str:
    """Build the images of 0.1.0, unless they are there."""
    torch = os.environ.get("TORCH", "torch==2.13.0+cpu")
    for service, tag in _OLD_IMAGES.items():
        if engine.run("image", "inspect", tag, check=False).returncode:
            options = ["--build-arg", f"TORCH={torch}"] if service == "worker-cpu" else []
            target = service.removesuffix("-cpu")
            engine.run(
                "build", "--target", target, *options, "--tag", tag, str(folder), timeout=3600
            )
    return ", ".join(_OLD_IMAGES.values())


def main() -> int:
    """Build, run, use, upgrade, end; 0 if all of it is as it should be."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--state", type=Path, help="folder of the engine, kept for the next run")
    parser.add_argument("--only", default="", help="only checks whose name has this word")
    parser.add_argument("--no-build", action="store_true", help="with the images of the last run")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    work = Path(tempfile.mkdtemp(prefix="koala-verify-"))
    state = arguments.state or work
    run = Run(arguments.only)
    overlay = os.environ.get("BASE_OVERLAY")
    try:
        need("docker", "dockerd", "debootstrap", "git", "tar")
        with Engine(state / "engine") as engine:
            try:
                made = bases.make(engine, work, _NAMES, Path(overlay) if overlay else None)
                print(f"bases: {', '.join(made) or 'as they were'}; no Grafana", flush=True)
                new = Site.checkout(engine, ROOT, None, work / "new")
                (new / "override.yml").write_text(override(_NEW_IMAGES, is_built=True))
                if not arguments.no_build:
                    run.step("build", lambda: build(engine, new))
                site = Site(engine, new, _COMPOSE_FILES)
                (new / "loras").mkdir()
                site.set(**VALUES)
                run.checks(site)
                site.compose("down", "--volumes", "--remove-orphans", check=False)
                if arguments.only in "kubernetes":
                    run.step(
                        "kubernetes",
                        lambda: pods.probes_and_drains(engine, new, _NEW_IMAGES, work / "pods"),
                    )
                if arguments.only in "upgrade_and_back":
                    old = Site.checkout(engine, ROOT, upgrade.RELEASED, work / "old")
                    run.step("build of 0.1.0", lambda: build_old(engine, old))
                    run.step(
                        "upgrade and back",
                        lambda: upgrade.upgrade_and_back(
                            engine, old, new, override(_OLD_IMAGES, is_built=False)
                        ),
                    )
            finally:
                for container in engine.run("ps", "--all", "--quiet").stdout.split():
                    engine.run("rm", "--force", container, check=False)
                for volume in engine.run("volume", "ls", "--quiet").stdout.split():
                    engine.run("volume", "rm", volume, check=False)
                engine.run("network", "prune", "--force", check=False)
    except Failed as error:
        run.failed.append(str(error))
        print(f"FAILED  {error}", flush=True)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    verdict = f"{len(run.failed)} failed" if run.failed else "all is well"
    print(f"verify-compose: {verdict}")
    return 1 if run.failed else 0


if __name__ == "__main__":
    sys.exit(main())
