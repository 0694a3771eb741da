"""Errors as problem details (RFC 9457), which name the field."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from flask import Flask, Response
from pydantic import ValidationError
from werkzeug.exceptions import HTTPException


class Problem(Exception):
    """Answered with that status; `more` are further members of the document."""

    def __init__(self, status: int, detail: str, **more: Any) -> None:
        super().__init__(detail)
        self.status, self.detail, self.more = status, detail, more


def register(app: Flask) -> None:
    """Every error of the application becomes a problem document."""

    @app.errorhandler(Problem)
    def problem(error: Problem) -> Response:
        return problem_details(error.status, error.detail, error.more)

    @app.errorhandler(HTTPException)
    def http_error(error: HTTPException) -> Response:
        response = problem_details(error.code or 500, error.description or "", {})
        for name, value in error.get_headers():
            if name == "Allow":
                response.headers[name] = value
        return response

    @app.errorhandler(Exception)
    def unexpected(error: Exception) -> Response:
        app.logger.exception("unexpected error", exc_info=error)
        return problem_details(500, "unexpected error; the service's log says more", {})


def problem_details(status: int, detail: str, more: Mapping[str, Any]) -> Response:
    title = Response(status=status).status.partition(" ")[2].title()
    body = {"type": "about:blank", "title": title, "status": status, "detail": detail, **more}
    return Response(json.dumps(body), status=status, mimetype="application/problem+json")


def field_errors(error: ValidationError) -> list[dict[str, Any]]:
    """Of a pydantic error: each field, the value where it is a plain one, and what is allowed."""
    found = []
    for item in error.errors(include_url=False, include_context=False):
        value = item["input"] if isinstance(item["input"], (str, int, float, bool, type(None))) else None
        safe = value if not isinstance(value, float) or (value == value and abs(value) != float("inf")) else str(value)
        found.append({"field": ".".join(str(part) for part in item["loc"]), "value": safe, "message": item["msg"]})
    return found
