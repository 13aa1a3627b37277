"""``python -m koala`` is the ``koala`` command."""

from koala.cli import app

app(prog_name="koala")
