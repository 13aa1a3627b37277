"""Logging: structlog for our own lines, and the libraries' stdlib loggers through it."""

import logging
import sys

import structlog

from koala.printable import json_line, printable
from koala.settings import Settings

# What `format_exc_info` and `StackInfoRenderer` make: text of many lines, which is to stay so.
_TRACES = frozenset({"exception", "stack"})


def configure(settings: Settings) -> None:
    """Set up logging to stderr for this process; call once, at its start."""
    level = logging.getLevelNamesMapping()[settings.log_level.upper()]
    as_json = settings.log_format == "json" or (
        settings.log_format == "auto" and not sys.stderr.isatty()
    )
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    final: list[structlog.typing.Processor] = [
        structlog.stdlib.ProcessorFormatter.remove_processors_meta
    ]
    final += [structlog.processors.format_exc_info]
    if as_json:
        final += [structlog.processors.JSONRenderer(serializer=json_line)]
    else:
        # Traces come as text by now: a renderer of its own would print messages as they are.
        final += [
            _make_printable,
            structlog.dev.ConsoleRenderer(
                colors=sys.stderr.isatty(),
                exception_formatter=structlog.dev.plain_traceback,
            ),
        ]
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(processors=final, foreign_pre_chain=shared)
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level)
    # They tell of every job, request and start what our own lines tell already.
    for chatty in ("rq", "rq.worker", "rq.job", "httpx", "uvicorn"):
        logging.getLogger(chatty).setLevel(max(level, logging.WARNING))


def _make_printable(
    _: structlog.typing.WrappedLogger, __: str, line: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    """Escape what a terminal would act upon, in every field: requests put text of theirs there."""
    return {printable(str(name)): _printable_value(name, value) for name, value in line.items()}


def _printable_value(name: str, value: object) -> object:
    if name in _TRACES:
        # Indented, so that no line of a message can pass for a line of the log.
        return "\n".join(f"  {printable(text, keep=chr(9))}" for text in str(value).split("\n"))
    if value is None or isinstance(value, (bool, int, float)):
        return value
    return printable(value if isinstance(value, str) else repr(value))
