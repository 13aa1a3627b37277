"""What is written to the log of a process of its own."""

import json
import os
import subprocess
import sys

import pytest

HOSTILE = "\x1b[31m\x9b32m\x07\x7f\u202e\u2066\u2028\u200f\r\n2026-01-01 [info     ] forged"
SCRIPT = f"""
import logging
import structlog
from koala import logs
from koala.settings import Settings
logs.configure(Settings())
hostile = {HOSTILE!r}
structlog.contextvars.bind_contextvars(request_id=hostile)
log = structlog.get_logger()
log.warning("event " + hostile, path=hostile, many=[hostile], count=3, **{{hostile: 1}})
logging.getLogger("uvicorn.error").error("foreign %s", hostile)
try:
    raise ValueError(hostile)
except ValueError:
    log.exception("it failed")
    logging.getLogger("asyncio").exception("foreign")
"""


def written(log_format: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env={**os.environ, "KOALA_LOG_FORMAT": log_format},
        capture_output=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stderr.decode()


@pytest.mark.parametrize("log_format", ["console", "json"])
def test_no_field_of_a_line_reaches_the_terminal_raw(log_format: str) -> None:
    text = written(log_format)
    assert text.isascii()
    assert text.replace("\n", "").isprintable()


def test_no_text_in_a_field_can_pass_for_another_line() -> None:
    lines = written("console").splitlines()
    assert not [line for line in lines if line.startswith("2026-01-01")]
    assert sum("event \\x1b[31m\\x9b32m" in line for line in lines) == 1
    assert sum("ValueError: \\x1b[31m" in line for line in lines) == 2
    assert "count=3" in "".join(lines)


def test_json_lines_keep_what_was_written() -> None:
    [event, foreign, *_] = map(json.loads, written("json").splitlines())
    assert event["path"] == HOSTILE
    assert event["request_id"] == HOSTILE
    assert event["many"] == [HOSTILE]
    assert foreign["event"] == f"foreign {HOSTILE}"
