"""What all commands share: settings, output, and one line for what is wrong."""

from typing import Any

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape

from koala.settings import Settings

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)


def complain(message: str) -> None:
    """Say what is wrong in one line on stderr."""
    err.print(f"[red]koala:[/red] {escape(message)}", soft_wrap=True)


def fail(message: str) -> typer.Exit:
    """Say what is wrong in one line on stderr; raise what this returns."""
    complain(message)
    return typer.Exit(1)


def load_settings(**overrides: Any) -> Settings:
    """Settings from the environment, with the command line's options on top.

    Raises:
        typer.Exit: A value is malformed; a line on stderr names the variable.
    """
    try:
        return Settings(**{key: value for key, value in overrides.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        name = "_".join(str(part) for part in first["loc"]).upper()
        message = first["msg"].removeprefix("Value error, ")
        raise fail(f"KOALA_{name}: {message}" if name else message) from None
