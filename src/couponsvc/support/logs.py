"""Structured logs: one JSON object per line on standard output, request id in every line.

What may not be told is taken out here, for every logger alike, ours and the libraries': fields
with a forbidden name are masked wherever they are nested, and so is anything in a text that looks
like one of them with its value. Better still is not to log it at all; this is the second line.
"""

import logging
import os
import re
import sys
from collections.abc import Mapping, MutableMapping
from typing import Any, Final

import structlog

MASK: Final = "***"
FORBIDDEN_FIELDS: Final = frozenset(
    {
        "person_token",
        "out_request_no",
        "holder",
        "secret",
        "token",
        "password",
        "dsn",
        "postgres_dsn",
        "redis_url",
        "master_key",
        "key",
        "authorization",
        "signature",
        "signature_input",
        "cookie",
        "body",
        "code",
    }
)
"""Names (dashes read as underscores, any case) whose values never reach a log."""

_NAMES = r"person_token|out_request_no|secret|token|password|authorization|signature(?:[-_]input)?|master_key"
_IN_TEXT: Final = re.compile(
    rf"""(?ix)
    (["']? \b (?:{_NAMES}) \b ["']? \s* [:=] \s*)
    (?: "[^"]*" | '[^']*' | (?:bearer\s+)? [^\s,;&}}]+ )"""
)
_BEARER: Final = re.compile(r"(?i)\b(bearer\s+)[A-Za-z0-9._~+/=-]+")
_CREDENTIALS_IN_URL: Final = re.compile(r"(\w+://[^\s:/@]*:)[^\s@/]+@")
_DETAIL_OF_POSTGRES: Final = re.compile(r"(?m)^(DETAIL|CONTEXT):.*$")
"""Postgres quotes whole rows in the detail of an error."""

NAME_OF_LIBRARY_LOGS: Final = ("uvicorn", "uvicorn.error", "uvicorn.access", "asyncpg", "redis", "asyncio")
WRITES_WHOLE_URLS: Final = ("uvicorn.access", "httpx2", "httpcore2")
"""Loggers that write paths and queries, which name persons and numbers: only warnings of them."""

TELLS_AWAY_WITH_STACK: Final = "asyncpg.pool"
"""Warns with a stack, pool by pool, again and again that Postgres is away; our own loops tell it, once."""


def configure(log_format: str, level: str) -> None:
    """Route our loggers and the libraries' to standard output.

    Args:
        log_format: `json` (one object per line) or `console` (for people).
        level: `debug`, `info`, `warning` or `error`.
    """
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _add_process,
    ]
    if log_format == "json":
        last: list[structlog.typing.Processor] = [
            structlog.processors.format_exc_info,
            mask_fields,
            structlog.processors.JSONRenderer(ensure_ascii=False, default=str),
        ]
    else:
        last = [
            structlog.processors.format_exc_info,
            mask_fields,
            structlog.dev.ConsoleRenderer(colors=sys.stdout.isatty()),
        ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.PositionalArgumentsFormatter(), *shared],
            processors=[_remove_bookkeeping, *last],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name in NAME_OF_LIBRARY_LOGS:
        library = logging.getLogger(name)
        library.handlers[:] = []
        library.propagate = True
        library.setLevel(logging.NOTSET)
    for name in WRITES_WHOLE_URLS:
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger(TELLS_AWAY_WITH_STACK).setLevel(logging.ERROR)
    logging.captureWarnings(capture=True)


def get(name: str) -> structlog.stdlib.BoundLogger:
    """A logger; `name` says which part of the service speaks."""
    logger: structlog.stdlib.BoundLogger = structlog.get_logger(name)
    return logger


def mask_fields(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Take out of an event what may not be told; last before it is written."""
    return {name: _masked(name, value) for name, value in event.items()}


def _masked(name: str, value: Any) -> Any:  # noqa: ANN401 - whatever a caller logs
    if name.lower().replace("-", "_") in FORBIDDEN_FIELDS:
        return MASK
    match value:
        case None | bool() | int() | float():
            return value
        case bytes():
            return mask_text(value.decode("utf-8", "replace"))
        case Mapping():
            return {str(k): _masked(str(k), v) for k, v in value.items()}
        case list() | tuple() | set() | frozenset():
            return [_masked("", item) for item in value]
        case _:  # text, or anything else as its text
            return mask_text(str(value))


def mask_text(text: str) -> str:
    """Take secrets and persons out of running text, as far as their names give them away."""
    text = _IN_TEXT.sub(rf"\g<1>{MASK}", text)
    text = _BEARER.sub(rf"\g<1>{MASK}", text)
    text = _CREDENTIALS_IN_URL.sub(rf"\g<1>{MASK}@", text)
    return _DETAIL_OF_POSTGRES.sub(rf"\g<1>: {MASK}", text)


def _add_process(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    event["process"] = os.getpid()
    return event


def _remove_bookkeeping(
    _logger: object, _method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    record = event.pop("_record", None)
    event.pop("_from_structlog", None)
    if record is not None:
        event.setdefault("logger", record.name)
    return event
