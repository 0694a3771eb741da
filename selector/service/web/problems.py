"""Errors as problem details (RFC 9457), which name the field."""

from __future__ import annotations

import re
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, get_args

from flask import Flask, Response, current_app, request
from pydantic import BaseModel, ValidationError
from pydantic_core import to_json
from werkzeug.exceptions import HTTPException

from exporter.bundle import Bundle
from selector.choose.budget import Budget, BudgetError
from selector.service.fleet.database import StoreUnavailable
from selector.service.web.access import LOGGED, request_id
from selector.ship.state import folder_of

MEDIA_TYPE = "application/problem+json"
MAX_FIELD_ERRORS = 32
"""In one answer: a body of many wrong fields is not answered with a larger one."""

_NO_TEXT = "nothing is known of generating text on this device; allowed are latency_ms and length"
MAX_VALUE = 256
"""Characters of a wrong value that are repeated."""


class Problem(Exception):
    """Answered with that status and those headers; `more` are further members of the document."""

    def __init__(self, status: int, detail: str, *, headers: Mapping[str, str] | None = None, **more: Any) -> None:
        super().__init__(detail)
        self.status, self.detail, self.headers, self.more = status, detail, headers or {}, more

    def document(self) -> dict[str, Any]:
        return problem_document(self.status, self.detail, {"request_id": request_id(), **self.more})


def wrong_field(field: str, value: Any, message: str, detail: str = "") -> Problem:
    """422 for one field: its value, where it is a plain one, and what is allowed. `detail`: the sentence for people."""
    error = {"field": field[:MAX_VALUE], "value": _shown(value), "message": message}
    return Problem(422, detail or f"{field[:MAX_VALUE]}: {message}", errors=[error])


def refuse_other_metric(budget: Budget, metric: str) -> None:
    """Raises Problem 422 naming the field where a budget speaks of accuracy and the bundle's metric is another."""
    try:
        budget.check(metric)
    except BudgetError as error:
        field = "min_accuracy" if budget.min_accuracy is not None else "objective"
        raise wrong_field(f"budget.{field}", getattr(budget, field), str(error), str(error)) from None


def refuse_tokens(budget: Budget, why: str = _NO_TEXT) -> None:
    """Raises Problem 422 naming the field where a budget speaks of tokens. `why`: that means nothing here, what is allowed."""
    name = budget.of_tokens
    if name is not None:
        raise wrong_field(f"budget.{name}", getattr(budget, name), why, f"budget.{name}: {why}")


def register(app: Flask) -> None:
    """Every error of the application becomes a problem document."""

    @app.errorhandler(Problem)
    def problem(error: Problem) -> Response:
        response = problem_details(error.status, error.detail, error.more)
        response.headers.update(error.headers)
        return response

    @app.errorhandler(StoreUnavailable)
    def unavailable(error: StoreUnavailable) -> Response:
        return problem(store_unavailable(error))

    @app.errorhandler(HTTPException)
    def http_error(error: HTTPException) -> Response:
        response = problem_details(error.code or 500, error.description or "", {})
        for name, value in error.get_headers():
            if name != "Content-Type":  # Allow, WWW-Authenticate, Retry-After, Content-Range
                response.headers[name] = value
        return response

    @app.errorhandler(Exception)
    def unforeseen(error: Exception) -> Response:
        return problem(unexpected(error))


def _about_the_request() -> dict[str, str | None]:
    """For the log: `access.LOGGED`."""
    path = request.url_rule.rule if request.url_rule else None
    return dict(zip(LOGGED, (request_id(), request.method, path), strict=True))


def unexpected(error: Exception) -> Problem:
    """Says all of it in the log, and nothing to the client."""
    current_app.logger.exception("unexpected error", exc_info=error, extra=_about_the_request())
    return Problem(500, "unexpected error; the service's log says more under this request_id")


def store_unavailable(error: StoreUnavailable) -> Problem:
    """Says so in the log too."""
    current_app.logger.error("the store does not answer: %s", error, extra=_about_the_request())
    return Problem(503, "the store of profiles does not answer; try again a little later", headers={"Retry-After": "1"})


def without_folder(error: Exception, bundle: Bundle) -> str:
    """What an error of the command line says, for clients: the bundle by its name, not by where it lies on the server."""
    told = str(error)
    for folder in (bundle.path, folder_of(bundle.path)):  # in the latter are versions that were replaced
        begins = "" if folder.is_absolute() else r"(?<![\w./-])"  # not where it is part of a word
        told = re.sub(rf"{begins}{re.escape(str(folder))}(?![\w-]|\.\w)", lambda found: bundle.name, told)
    return told


def problem_details(status: int, detail: str, more: Mapping[str, Any]) -> Response:
    body = problem_json(status, detail, {"request_id": request_id(), **more})
    return Response(body, status=status, mimetype=MEDIA_TYPE)


def problem_json(status: int, detail: str, more: Mapping[str, Any]) -> bytes:
    return to_json(problem_document(status, detail, more))


def problem_document(status: int, detail: str, more: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "about:blank", "title": HTTPStatus(status).phrase.title(), "status": status, "detail": detail, **more}


_KIND = re.compile(r"str|int|float|bool|constrained-\w+|(list|tuple|dict)\[.*\]")
"""What pydantic puts behind a field's name where several kinds of value are allowed: no part of the name."""


def field_errors(error: ValidationError, model: type[BaseModel] | None = None) -> list[dict[str, Any]]:
    """Of a pydantic error: the first fields, the value where it is a plain one, and what is allowed. `model`: what was asked
    for, to say where a field belongs that stands elsewhere."""
    found = []
    for item in error.errors(include_url=False, include_context=False)[:MAX_FIELD_ERRORS]:
        parts = [str(part) for part in item["loc"]]
        field, message = ".".join(p for n, p in enumerate(parts) if n == 0 or not _KIND.fullmatch(p)), item["msg"]
        if model is not None and item["type"] == "extra_forbidden":
            if place := _place_of(item["loc"], model):
                message = f"belongs in {place}"
            elif names := _names_at(item["loc"], model):
                message = f"there is no such field; allowed are {', '.join(names)}"
        found.append({"field": field, "value": _shown(item["input"]), "message": message})
    return found


def _place_of(location: tuple[int | str, ...], model: type[BaseModel]) -> str:
    """Where the last of these names is a field: `options` for one of `model.options`. Empty where that is nowhere else."""
    name = location[-1]
    parts = {part: field.annotation for part, field in model.model_fields.items()}
    inner = {part: kind for part, kind in parts.items() if isinstance(kind, type) and issubclass(kind, BaseModel)}
    found = [part for part, kind in inner.items() if name in kind.model_fields]
    if name in parts:
        found.append("the document itself")
    return " or ".join(part for part in found if location[:-1] != (part,))


def _names_at(location: tuple[int | str, ...], model: type[BaseModel]) -> list[str]:
    """The fields that there are where this one stands; empty where that is not one known document."""
    for part in location[:-1]:
        kind = model.model_fields[part].annotation if part in model.model_fields else None
        kinds = [one for one in (kind, *get_args(kind)) if isinstance(one, type) and issubclass(one, BaseModel)]
        if len(kinds) != 1:
            return []
        (model,) = kinds
    return list(model.model_fields)


def _shown(value: Any) -> str | float | bool | None:
    """A wrong value as it is repeated: cut where long, in words where JSON has no such number, None where it has parts."""
    if not isinstance(value, (str, int, float, bool, type(None))):
        return None
    if isinstance(value, float) and (value != value or abs(value) == float("inf")):
        return str(value)
    if isinstance(value, int) and abs(value) >= 2**63:
        return f"{value:.3e}" if abs(value) < 10**300 else "too large"
    if isinstance(value, str) and len(value) > MAX_VALUE:
        return value[:MAX_VALUE] + "…"
    return value
