"""LoRAs by name: files in one folder, known by their stems, that requests add to the model.

Nothing here reads a file: the gateway only has to know which ones are there.
"""

import difflib
import re
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict, Field

# Most LoRAs of one request.
MAX_LORAS: Final = 4

# Largest weight, with either sign: sliders are used far beyond 1.
MAX_LORA_WEIGHT: Final = 10.0

_SUFFIX: Final = ".safetensors"
# Neither what separates paths nor what `<lora:name:weight>` is written with.
_NAME: Final = re.compile(r"\w[\w .()+-]{0,99}")


class LoraUse(BaseModel):
    """One LoRA of a request and how much of it: 1 is what it was trained for, 0 is nothing."""

    model_config = ConfigDict(frozen=True, extra="forbid")

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


class LoraFolder:
    """The files ``NAME.safetensors`` of a folder, looked up anew each time.

    A name is only ever compared with those of the files that are there, so none leads out of the
    folder. Files whose names hold other than letters, digits, spaces and ``_.()+-`` are left out.

    Args:
        path: The folder; ``None``: there are no LoRAs.

    Raises:
        ValueError: ``path`` is no folder.
    """

    def __init__(self, path: Path | None) -> None:
        if path is not None and not path.is_dir():
            raise ValueError(f"there is no folder {path}")
        self._path = path

    @property
    def is_configured(self) -> bool:
        """Whether there is a folder at all."""
        return self._path is not None

    def names(self) -> list[str]:
        """The names of all LoRAs, in order."""
        return sorted(self._files())

    def find(self, name: str) -> Path:
        """The file of the LoRA ``name``.

        Raises:
            UnknownLora: There is none.
        """
        files = self._files()
        if name not in files:
            near = difflib.get_close_matches(name, files, n=3)
            hint = f"; near it: {', '.join(map(repr, near))}" if near else ""
            raise UnknownLora(f"there is no LoRA {name!r}{hint}")
        return files[name]

    def _files(self) -> dict[str, Path]:
        if self._path is None:
            return {}
        return {
            path.stem: path
            for path in self._path.iterdir()
            if path.suffix == _SUFFIX and _NAME.fullmatch(path.stem) and path.is_file()
        }
