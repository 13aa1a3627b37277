"""Install the build of PyTorch that this machine can use, before everything else is installed.

`make run` calls it. On Linux PyPI's build brings gigabytes of CUDA, which are of use only with an
NVIDIA card; PyTorch has an index of its own with builds for the CPU. What is installed already is
kept, and so is what pip's own configuration names. Nothing but Python and its pip is needed.
"""

import argparse
import importlib.metadata
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

CPU_INDEX: Final = "https://download.pytorch.org/whl/cpu"
CONSTRAINTS: Final = Path(__file__).resolve().parent.parent / "constraints.txt"

# In place of PyPI: then pip finds only what its configuration adds.
_NO_INDEX: Final = ("--index-url", "file:///dev/null")
# pip's own patience, its retries included, lasts for minutes. A name server that never answers is
# noticed by the second number only.
_ANSWER_SECONDS: Final = 5
_LOOK_SECONDS: Final = 15
_PIN: Final = re.compile(r"^torch==(\S+)$", re.MULTILINE)
_PIP: Final = (sys.executable, "-m", "pip", "--disable-pip-version-check")


@dataclass(frozen=True, slots=True)
class Choice:
    """What pip is to install, ``requirement`` and ``options``; ``None``: nothing, it is there."""

    requirement: str | None
    options: tuple[str, ...]
    why: str


def choose(
    pin: str,
    index: str | None = None,
    *,
    installed: str | None = None,
    platform: str = sys.platform,
    devices: Path = Path("/dev"),
    cpu_index: str = CPU_INDEX,
) -> Choice:
    """Decide which torch is installed.

    Args:
        pin: The version that constraints.txt asks for.
        index: An index that the user asks for.
        installed: The version that is there.
        platform: As ``sys.platform``.
        devices: The folder of device files.
        cpu_index: The index of the builds for the CPU.
    """
    pinned = f"torch=={pin}"
    if installed is not None:
        other = "" if _public(installed) == pin else f"; constraints.txt asks for {pin}"
        return Choice(None, (), f"{installed} is installed and is kept{other}")
    if index is not None:
        return Choice(pinned, ("--index-url", index), f"{pin} from TORCH_INDEX, {index}")
    if named := _constrained():
        return Choice("torch", (), f"pip's configuration has the constraint {named!r}")
    if found := _find(pin, _NO_INDEX):
        return Choice(pinned, _NO_INDEX, f"{found}, where pip's configuration says that it is")
    if platform != "linux":
        return Choice(pinned, (), f"{pin} as pip finds it: on this system there is no CUDA in it")
    if card := nvidia_card(devices):
        return Choice(pinned, (), f"{pin} as pip finds it, with CUDA: {card} is an NVIDIA card")
    if found := _find(pin, ("--index-url", cpu_index)):
        why = f"{found} from {cpu_index}: there is no NVIDIA card"
        return Choice(pinned, ("--index-url", cpu_index), why)
    return Choice(
        pinned,
        (),
        f"{pin} as pip finds it, which may bring gigabytes of CUDA: there is no NVIDIA card, but "
        f"{cpu_index} cannot be reached or does not have {pin} for this Python",
    )


def nvidia_card(devices: Path) -> str | None:
    """What shows that there is an NVIDIA card with a driver; ``None``: nothing does."""
    for path in sorted(devices.glob("nvidia[0-9]*")):
        return str(path)
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    try:
        listed = subprocess.run(
            [program, "-L"], capture_output=True, text=True, timeout=_LOOK_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return "nvidia-smi" if listed.returncode == 0 and "GPU" in listed.stdout else None


def _find(pin: str, options: tuple[str, ...]) -> str | None:
    """The version that satisfies ``pin`` among those that pip finds for this Python."""
    patience = ("--retries", "0", "--timeout", str(_ANSWER_SECONDS))
    try:
        listed = subprocess.run(
            [*_PIP, "index", "versions", "torch", *options, *patience],
            capture_output=True,
            text=True,
            timeout=_LOOK_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return None
    line = re.search(r"^Available versions: (.*)$", listed.stdout, re.MULTILINE)
    versions = line[1].split(", ") if line else []
    return next((version for version in versions if _public(version) == pin), None)


def _constrained() -> str | None:
    """The line of pip's own constraints that names one build of torch."""
    listed = subprocess.run([*_PIP, "config", "list"], capture_output=True, text=True, check=True)
    for files in re.findall(r"^\S+\.constraint='(.*)'$", listed.stdout, re.MULTILINE):
        for file in files.split():
            lines = Path(file).read_text(encoding="utf-8") if Path(file).is_file() else ""
            if named := re.search(r"^torch *(==|@).*$", lines, re.MULTILINE):
                return named[0]
    return None


def _public(version: str) -> str:
    return version.partition("+")[0]


def _installed() -> str | None:
    try:
        return importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        return None


def main(arguments: Sequence[str] | None = None) -> None:
    """Install torch, and write constraints that keep what is there then."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--index", help="take torch from this index, whatever the machine has")
    parser.add_argument("--output", type=Path, required=True, help="constraints to write")
    given = parser.parse_args(arguments)
    text = CONSTRAINTS.read_text(encoding="utf-8")
    [pin] = _PIN.findall(text)
    choice = choose(pin, given.index or None, installed=_installed())
    print(f"torch: {choice.why}.", flush=True)
    if choice.requirement is not None:
        # Its dependencies come with all others, from where those come from. Errors are shown only.
        install = ("install", "-qq", "--no-deps", *choice.options, choice.requirement)
        done = subprocess.run([*_PIP, *install], check=False)
        if done.returncode:
            raise SystemExit(done.returncode)
    installed = _installed()
    if installed is not None and _public(installed) != pin:
        text = _PIN.sub(f"torch=={installed}", text)
    given.output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
