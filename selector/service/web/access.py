"""What is done to every request, whatever its path: its id, its line in the log, the headers that keep a browser safe.

A WSGI layer and not hooks of flask, because the headers are then one list that is added, and the time is the whole.
"""

from __future__ import annotations

import logging
import re
import sys
import time
import uuid
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import structlog
from flask import request
from pydantic_core import to_json

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

ENVIRON_KEY = "sortednet.request_id"
HEADERS = [
    ("X-Content-Type-Options", "nosniff"),
    ("X-Frame-Options", "DENY"),
    ("Referrer-Policy", "no-referrer"),
    ("Cross-Origin-Opener-Policy", "same-origin"),
    ("Permissions-Policy", "camera=(), geolocation=(), microphone=()"),
]
"""Of every answer."""

CONTENT_POLICY = ("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
"""Of every answer that has none of its own: a page says what it loads, from this host alone."""

OWN = (CONTENT_POLICY[0], "Permissions-Policy")
"""Of these an answer may have its own."""
_USUAL = [*HEADERS, CONTENT_POLICY]

LOGGED = ("request_id", "method", "path")
"""What a line about a request says of it; the path is the template."""

_sane = re.compile(r"[A-Za-z0-9._:/+=@~-]{1,128}").fullmatch


def request_id() -> str:
    """The present request's id: its own `X-Request-Id`, or a new one where that is missing or could garble a log."""
    found: str = request.environ.get(ENVIRON_KEY, "")
    return found


class Access:
    """Gives each request an id and its answer the headers, and logs it as one line of JSON: method, the path's template (not
    the path, which may hold anything), status, duration until the answer was made, its bytes, id. No bodies, no tokens."""

    def __init__(self, application: WSGIApplication) -> None:
        self._application = application
        self._log = access_log()

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        started = time.perf_counter()
        given = environ.get("HTTP_X_REQUEST_ID", "")
        identifier = environ[ENVIRON_KEY] = given if _sane(given) else uuid.uuid4().hex
        answered: dict[str, Any] = {"path": None, "status": 0, "bytes": None}

        def start(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Callable[[bytes], object]:
            rule = getattr(environ.get("werkzeug.request"), "url_rule", None)  # it is gone when the application returns
            answered["path"] = rule.rule if rule is not None else None
            answered["status"] = int(status[:3])
            added = _USUAL
            for name, value in headers:
                if name == "Content-Length":
                    answered["bytes"] = int(value)
                elif name in OWN:
                    added = [one for one in added if one[0] != name]
            return start_response(status, [*headers, *added, ("X-Request-Id", identifier)], exc_info)

        answer = self._application(environ, start)
        self._log.info(
            "request",
            method=environ["REQUEST_METHOD"],
            **answered,
            duration_ms=round((time.perf_counter() - started) * 1000, 3),
            request_id=identifier,
        )
        return answer


def access_log() -> Any:
    """Of lines of JSON on stderr."""
    processors: list[Any] = [structlog.processors.add_log_level, _timestamp(), structlog.processors.JSONRenderer(_dumps)]
    return structlog.wrap_logger(
        structlog.BytesLogger(sys.stderr.buffer),
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        cache_logger_on_first_use=True,
    ).bind()


class WithoutTheUsual(logging.Filter):
    """Keeps back what the server says at each start: `sortednet serve` says where it is, in a line for people."""

    USUAL = ("Starting gunicorn", "Listening at", "Using worker", "Booting worker", "Control socket")

    def filter(self, record: logging.LogRecord) -> bool:
        return not (record.levelno == logging.INFO and str(record.msg).startswith(self.USUAL))


def log_settings() -> dict[str, Any]:
    """For `logging`: what the server and the application have to say becomes lines of JSON on stderr too."""
    stamped = [structlog.stdlib.add_log_level, structlog.stdlib.ExtraAdder(LOGGED), _timestamp()]
    processors = [
        structlog.stdlib.ProcessorFormatter.remove_processors_meta,
        structlog.processors.format_exc_info,
        structlog.processors.JSONRenderer(lambda event, **_: _dumps(event).decode()),
    ]
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {
            "json": {"()": structlog.stdlib.ProcessorFormatter, "foreign_pre_chain": stamped, "processors": processors}
        },
        "filters": {"usual": {"()": WithoutTheUsual}},
        "handlers": {
            "stderr": {
                "class": "logging.StreamHandler",
                "formatter": "json",
                "stream": "ext://sys.stderr",
                "filters": ["usual"],
            }
        },
        "root": {"level": "INFO", "handlers": ["stderr"]},
        "loggers": {
            "gunicorn.error": {"level": "INFO", "handlers": [], "propagate": True},
        },
    }


def _timestamp() -> structlog.processors.TimeStamper:
    return structlog.processors.TimeStamper(fmt="iso", utc=True)


def _dumps(event: Any, **_: Any) -> bytes:
    return to_json(event, fallback=repr)
