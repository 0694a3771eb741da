"""Errors as problem details (RFC 9457), which name the field."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from flask import Flask, Response
from pydantic import ValidationError
from pydantic_core import to_json
from werkzeug.exceptions import HTTPException

from selector.service.access import request_id
from selector.service.database import StoreUnavailable

MEDIA_TYPE = "application/problem+json"
MAX_FIELD_ERRORS = 32
"""In one answer: a body of many wrong fields is not answered with a larger one."""

MAX_VALUE = 256
"""Characters of a wrong value that are repeated."""


class Problem(Exception):
    """Answered with that status and those headers; `more` are further members of the document."""

    def __init__(self, status: int, detail: str, *, headers: Mapping[str, str] | None = None, **more: Any) -> None:
        super().__init__(detail)
        self.status, self.detail, self.headers, self.more = status, detail, headers or {}, more

    def document(self) -> dict[str, Any]:
        return problem_document(self.status, self.detail, {"request_id": request_id(), **self.more})


def register(app: Flask) -> None:
    """Every error of the application becomes a problem document."""

    @app.errorhandler(Problem)
    def problem(error: Problem) -> Response:
        response = problem_details(error.status, error.detail, error.more)
        response.headers.update(error.headers)
        return response

    @app.errorhandler(StoreUnavailable)
    def store_unavailable(error: StoreUnavailable) -> Response:
        app.logger.error("the store does not answer: %s", error)
        response = problem_details(503, "the store of profiles does not answer; try again a little later", {})
        response.headers["Retry-After"] = "1"
        return response

    @app.errorhandler(HTTPException)
    def http_error(error: HTTPException) -> Response:
        response = problem_details(error.code or 500, error.description or "", {})
        for name, value in error.get_headers():
            if name != "Content-Type":  # Allow, WWW-Authenticate, Retry-After, Content-Range
                response.headers[name] = value
        return response

    @app.errorhandler(Exception)
    def unexpected(error: Exception) -> Response:
        app.logger.exception("unexpected error", exc_info=error, extra={"request_id": request_id()})
        return problem_details(500, "unexpected error; the service's log says more under this request_id", {})


def problem_details(status: int, detail: str, more: Mapping[str, Any]) -> Response:
    body = problem_json(status, detail, {"request_id": request_id(), **more})
    return Response(body, status=status, mimetype=MEDIA_TYPE)


def problem_json(status: int, detail: str, more: Mapping[str, Any]) -> bytes:
    return to_json(problem_document(status, detail, more))


def problem_document(status: int, detail: str, more: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "about:blank", "title": HTTPStatus(status).phrase.title(), "status": status, "detail": detail, **more}


def field_errors(error: ValidationError) -> list[dict[str, Any]]:
    """Of a pydantic error: the first fields, the value where it is a plain one, and what is allowed."""
    found = []
    for item in error.errors(include_url=False, include_context=False)[:MAX_FIELD_ERRORS]:
        value = item["input"] if isinstance(item["input"], (str, int, float, bool, type(None))) else None
        if isinstance(value, float) and (value != value or abs(value) == float("inf")):
            value = str(value)
        if isinstance(value, int) and abs(value) >= 2**63:
            value = f"{value:.3e}" if abs(value) < 10**300 else "too large"
        if isinstance(value, str) and len(value) > MAX_VALUE:
            value = value[:MAX_VALUE] + "…"
        field = ".".join(str(part) for part in item["loc"])
        found.append({"field": field, "value": value, "message": item["msg"]})
    return found
