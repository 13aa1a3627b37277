"""How long a device takes for what, as a file: what ``koala simulate --curve`` reads."""

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

_Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_Count = Annotated[int, Field(gt=0)]


class SizeCurve(BaseModel):
    """What was measured at one size.

    ``size`` is width and height in pixels; ``step_seconds`` maps rows of a U-Net call (two for an
    image with guidance) to its seconds; ``decode_seconds`` is what the VAE takes for one image.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    size: tuple[_Count, _Count]
    step_seconds: dict[_Count, _Seconds] = Field(min_length=1)
    decode_seconds: float = Field(ge=0, allow_inf_nan=False)


class DeviceCurves(BaseModel):
    """What was measured on one device with one model.

    ``tick_overhead_seconds`` is what the loop takes between two U-Net calls whatever their rows:
    schedulers, bookkeeping, the host's part.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    tick_overhead_seconds: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    sizes: tuple[SizeCurve, ...] = Field(min_length=1)


class CurveFileError(ValueError):
    """A file holds no curves; the message names it and what is wrong, in one line."""


def read_curves(path: Path) -> DeviceCurves:
    """The curves in a file.

    Raises:
        CurveFileError: It cannot be read or does not hold any.
    """
    try:
        return DeviceCurves.model_validate_json(path.read_bytes())
    except OSError as error:
        raise CurveFileError(f"{path}: {error.strerror}") from None
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise CurveFileError(f"{path}: {place + ': ' if place else ''}{first['msg']}") from None
