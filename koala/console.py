"""What all commands share: settings, output, and one line for what is wrong."""

from typing import Any

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.text import Text

from koala.printable import printable
from koala.settings import Settings

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)


def plain(text: str) -> Text:
    """Text that rich and the terminal show as it is, without taking anything in it for orders."""
    return Text(printable(text))


def say(text: str, console: Console = out) -> None:
    """Print a line of text as it is."""
    console.print(plain(text), soft_wrap=True)


def complain(message: str, console: Console = err) -> None:
    """Say what is wrong in one line on stderr."""
    console.print(Text.assemble(("koala:", "red"), " ", plain(message)), soft_wrap=True)


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
