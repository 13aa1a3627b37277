"""``koala keys``: API keys in a file, which running gateways notice by themselves."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError
from rich.table import Table

from koala.apikeys import ApiKey, Scope, digest, new_secret
from koala.console import err, fail, load_settings, out, plain, say
from koala.keyfile import KeyFileError, add_key, read_keys, remove_key
from koala.spec import Priority

app = typer.Typer(help="Make, list and remove API keys.", no_args_is_help=True)

File = Annotated[Path | None, typer.Option(help="Where the keys are kept (KOALA_API_KEYS_FILE).")]
Name = Annotated[str, typer.Argument(help="What the key is called; it owns its jobs by this name.")]


@app.command()
def add(
    name: Name,
    scope: Annotated[
        list[Scope] | None,
        typer.Option(
            help="May be repeated: generate (send requests), read (jobs, images, models), admin "
            "(everything, and everybody's jobs).  \\[default: generate, read]"
        ),
    ] = None,
    priority: Annotated[
        Priority, typer.Option(help="Highest priority its requests may ask for.")
    ] = "normal",
    rate_limit: Annotated[
        str | None, typer.Option(help="Such as 60/minute, instead of KOALA_RATE_LIMIT.")
    ] = None,
    max_queued: Annotated[
        int | None,
        typer.Option(help="Most jobs waiting, instead of KOALA_MAX_QUEUED_PER_KEY."),
    ] = None,
    file: File = None,
) -> None:
    """Make a key and print its secret, this one time."""
    path, secret = _path(file), new_secret()
    try:
        key = ApiKey(
            name=name,
            sha256=digest(secret),
            scopes=tuple(dict.fromkeys(scope or (Scope.GENERATE, Scope.READ))),
            priority=priority,
            rate_limit=rate_limit,
            max_queued=max_queued,
            # Only shown.
            created_at=datetime.now(UTC).replace(microsecond=0),  # noqa: TID251
        )
        add_key(path, key)
    except ValidationError as error:
        raise fail(_problem(error)) from None
    except KeyFileError as error:
        raise fail(f"{error}.") from None
    # Alone on stdout, for scripts.
    say(secret)
    say(f"The key {name!r} is in {path}. Its secret cannot be shown again: keep it.", err)


@app.command("list")
def show(file: File = None) -> None:
    """List the keys and what they may do."""
    table = Table(box=None, header_style="bold")
    for column in ("name", "scopes", "priority", "rate limit", "max queued", "made"):
        table.add_column(column, no_wrap=True)
    try:
        for key in read_keys(_path(file)):
            table.add_row(
                plain(key.name),
                ", ".join(key.scopes),
                key.priority,
                plain(key.rate_limit or "-"),
                "-" if key.max_queued is None else str(key.max_queued),
                "-" if key.created_at is None else f"{key.created_at:%Y-%m-%d}",
            )
    except KeyFileError as error:
        raise fail(f"{error}.") from None
    out.print(table)


@app.command()
def remove(name: Name, file: File = None) -> None:
    """Remove a key: it is refused from the next second on."""
    path = _path(file)
    try:
        remove_key(path, name)
    except KeyFileError as error:
        raise fail(f"{error}.") from None
    say(f"The key {name!r} is no longer in {path}.")


def _path(file: Path | None) -> Path:
    path = load_settings(api_keys_file=file).api_keys_file
    if path is None:
        raise fail("Say where the keys are kept: set KOALA_API_KEYS_FILE, or give --file.")
    return path


def _problem(error: ValidationError) -> str:
    first = error.errors()[0]
    field = str(first["loc"][0])
    if field == "name":
        return (
            "NAME must be 1 to 64 letters, digits, dots, dashes and underscores, and begin with a "
            "letter or digit."
        )
    message = first["msg"].removeprefix("Value error, ")
    return f"--{field.replace('_', '-')}: {message}."
