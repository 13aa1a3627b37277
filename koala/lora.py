"""LoRAs by name: files in one folder, known by their stems, that requests add to the model.

Of a file only the header is read here: a gateway says at once what cannot be a LoRA. Whether one
fits the model, and its numbers, are for the worker.
"""

import difflib
import errno
import os
import re
import stat
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog
from pydantic import BaseModel, ConfigDict, Field

from koala.tensor_file import TensorFileError, TensorHeader, read_header

log = structlog.get_logger()

# Most LoRAs of one request.
MAX_LORAS: Final = 4

# Largest weight, with either sign: sliders are used far beyond 1.
MAX_LORA_WEIGHT: Final = 10.0

_SUFFIX: Final = ".safetensors"
# SDXL's LoRAs name some thousands of tensors in less than 1 MiB; trainers add notes of their own.
_LONGEST_HEADER: Final = 16 * 2**20
# SDXL's have some 2,200 layers of three tensors each; a header of empty ones costs only time.
_MOST_TENSORS: Final = 32_768
# Files whose headers were read last, of which it is remembered what came of that.
_REMEMBERED: Final = 256
# A name may be valid here and longer than that of a file.
_NOT_THERE: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG})
# Neither what separates paths nor what `<lora:name:weight>` is written with.
_NAME: Final = re.compile(r"\w[\w .()+-]{0,99}")


class LoraUse(BaseModel):
    """One LoRA of a request and how much of it: 1 is what it was trained for, 0 is nothing."""

    model_config = ConfigDict(frozen=True)

    name: str = Field(max_length=100, description="Its name; see `GET /v1/models`.")
    weight: float = Field(
        1.0,
        ge=-MAX_LORA_WEIGHT,
        le=MAX_LORA_WEIGHT,
        allow_inf_nan=False,
        description="How strongly it works.",
    )

    def __str__(self) -> str:
        """As AUTOMATIC1111 writes it in a prompt."""
        return f"<lora:{self.name}:{self.weight:g}>"


class UnknownLora(LookupError):
    """There is no LoRA of that name; the message names those that are spelt alike."""


class LoraError(Exception):
    """A LoRA cannot be used; the message says which one and why."""

    @classmethod
    def unusable(cls, name: str, reason: object) -> "LoraError":
        """That the LoRA ``name`` cannot be used, for ``reason``."""
        return cls(f"The LoRA {name!r} cannot be used: {reason}")

    @staticmethod
    def is_about(message: str, name: str) -> bool:
        """Whether ``message`` is what an error of the LoRA ``name`` says."""
        return message.startswith(f"The LoRA {name!r} ")


@dataclass(frozen=True, slots=True)
class LoraFile:
    """A file of a LoRA.

    Args:
        name: The LoRA's name.
        path: Where it is.
        stamp: Another one when the file is another one or was written again.
    """

    name: str
    path: Path
    stamp: str

    def header(self) -> TensorHeader:
        """Its header.

        Raises:
            LoraError: It cannot be read, or the file is no LoRA of any model.
        """
        try:
            with self.path.open("rb") as file:
                header = read_header(file, _LONGEST_HEADER)
        except TensorFileError as error:
            raise LoraError.unusable(self.name, error) from None
        except OSError as error:
            raise LoraError.unusable(self.name, error.strerror) from None
        if not header.tensors:
            raise LoraError.unusable(self.name, "it is empty")
        if len(header.tensors) > _MOST_TENSORS:
            raise LoraError.unusable(
                self.name,
                f"it has {len(header.tensors)} tensors, no LoRA has more than {_MOST_TENSORS}",
            )
        return header


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:
        # Such as a link that leads to itself; `find` says what is wrong with it.
        return False


def stamp_of(name: str, status: os.stat_result) -> str:
    """What tells a file from the one that takes its place, and from itself written anew."""
    return f"{name}:{status.st_ino}:{status.st_size}:{status.st_mtime_ns}"


class LoraFolder:
    """The files ``NAME.safetensors`` of a folder, looked up anew each time.

    A name consists of letters, digits, spaces and ``_.()+-`` and begins with a letter, a digit or
    ``_``, so none leads out of the folder; files of other names are left out. All calls look at the
    disk: asyncio's callers use a thread.

    Args:
        path: The folder; ``None``: there are no LoRAs.

    Raises:
        ValueError: ``path`` is no folder.
    """

    def __init__(self, path: Path | None) -> None:
        if path is not None and not path.is_dir():
            raise ValueError(f"there is no folder {path}")
        self._path = path
        # Stamps of the files whose headers were found sound, the last ones looked at.
        self._sound: OrderedDict[str, None] = OrderedDict()

    @property
    def is_configured(self) -> bool:
        """Whether there is a folder at all."""
        return self._path is not None

    def names(self) -> list[str]:
        """The names of all LoRAs, in order."""
        if self._path is None:
            return []
        try:
            with os.scandir(self._path) as entries:
                found = [Path(entry.name) for entry in entries if _is_file(entry)]
        except OSError as error:
            log.warning("the folder of LoRAs cannot be listed", error=str(error))
            return []
        stems = (path.stem for path in found if path.suffix == _SUFFIX)
        return sorted(stem for stem in stems if _NAME.fullmatch(stem))

    def find(self, name: str) -> LoraFile:
        """The file of the LoRA ``name``: one look at that file, however many others there are.

        Raises:
            UnknownLora: There is none.
            LoraError: The disk does not say.
        """
        if self._path is not None and _NAME.fullmatch(name):
            path = self._path / f"{name}{_SUFFIX}"
            try:
                status = path.stat()
            except OSError as error:
                if error.errno not in _NOT_THERE:
                    raise LoraError.unusable(name, error.strerror) from None
            else:
                if stat.S_ISREG(status.st_mode):
                    return LoraFile(name, path, stamp_of(name, status))
        near = difflib.get_close_matches(name, self.names(), n=3)
        hint = f"; near it: {', '.join(map(repr, near))}" if near else ""
        raise UnknownLora(f"there is no LoRA {name!r}{hint}")

    def check(self, name: str) -> None:
        """Check that there is a LoRA ``name`` whose file may be one.

        Raises:
            UnknownLora: There is none.
            LoraError: Its header says that it is none.
        """
        file = self.find(name)
        if file.stamp in self._sound:
            return
        file.header()
        self._sound[file.stamp] = None
        while len(self._sound) > _REMEMBERED:
            self._sound.popitem(last=False)
