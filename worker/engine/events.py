"""What the engine tells about its samples."""

from dataclasses import dataclass
from typing import TypeAlias

from PIL.Image import Image

from worker.engine.request import SampleKey


@dataclass(frozen=True, slots=True)
class Progress:
    """A sample has done ``step`` of its ``steps`` denoising steps."""

    key: SampleKey
    step: int
    steps: int


@dataclass(frozen=True, slots=True)
class Preview:
    """What a sample looks like after ``step`` steps: a small Pillow image in mode RGB."""

    key: SampleKey
    step: int
    image: Image


@dataclass(frozen=True, slots=True)
class Finished:
    """A sample is drawn: ``image`` is a Pillow image in mode RGB. The engine has forgotten it."""

    key: SampleKey
    image: Image


@dataclass(frozen=True, slots=True)
class Failed:
    """A sample cannot be drawn, for the reason ``error``. The engine has forgotten it."""

    key: SampleKey
    error: Exception


EngineEvent: TypeAlias = Progress | Preview | Finished | Failed
