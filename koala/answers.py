"""What ``koala generate`` reads of a gateway's answers, checked before it is used.

What is at an address may be another program, a proxy or a later gateway: other fields are ignored,
and one that is missing or of another type is told instead of failing where it is used.
"""

from typing import Annotated, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

_Number = Annotated[float, Field(allow_inf_nan=False)]


class AnswerError(ValueError):
    """An answer is not what a gateway gives; the message names the field."""


class Answer(BaseModel):
    """What all answers have in common."""

    model_config = ConfigDict(frozen=True, strict=True, hide_input_in_errors=True)


class Admitted(Answer):
    """A job that was accepted."""

    # It becomes part of addresses.
    id: str = Field(pattern=r"^[A-Za-z0-9_-]{1,100}$")


class Status(Answer):
    """A job, of which only its state matters."""

    status: str


class Event(Answer):
    """An event of a job."""

    class Image(Answer):
        """An image of a completed job."""

        url: str
        seed: int

    class Result(Answer):
        """What a completed job gave."""

        warnings: list[str]
        data: list["Event.Image"]

    class Error(Answer):
        """Why a job gave nothing."""

        message: str

    class Job(Answer):
        """A job that has ended."""

        status: str
        error: "Event.Error | None"
        result: "Event.Result | None" = None

        @model_validator(mode="after")
        def _completed_has_a_result(self) -> Self:
            if self.status == "completed" and self.result is None:
                raise ValueError("the job is completed and has no result")
            return self

    type: str
    position: int | None = None
    step: _Number | None = None
    steps: _Number | None = None
    eta_seconds: _Number | None = None
    image: int | None = None
    b64_json: str | None = None
    job: Job | None = None
    error: Error | None = None

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        needed: tuple[str, ...] = ()
        match self.type:
            case "step":
                needed = ("step", "steps")
            case "position":
                needed = ("position",)
            case "preview":
                needed = ("image", "b64_json")
            case "completed" | "cancelled":
                needed = ("job",)
            case "failed" if self.job is None:
                # A job that has expired meanwhile has an error of its own.
                needed = ("error",)
        for name in needed:
            if getattr(self, name) is None:
                raise ValueError(f"{name} is missing")
        return self


_Kind = TypeVar("_Kind", bound=Answer)


def read(kind: type[_Kind], text: bytes | str) -> _Kind:
    """``text``, which is JSON, as ``kind``.

    Raises:
        AnswerError: It is something else.
    """
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        raise AnswerError(f"{where}: {message}" if where else message) from None
