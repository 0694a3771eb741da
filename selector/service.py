"""The REST service: budget queries over HTTP (CONTRACT.md, `/v1`). Errors are problem details (RFC 9457)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from flask import Flask, Response, request
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge

from exporter.bundle import Bundle, BundleError
from exporter.inspection import inspect
from selector.battery import Battery
from selector.budget import Budget, BudgetError
from selector.selector import Selector, selector_for

MAX_BODY_BYTES = 64 * 1024
MAX_NAME = 128


class SelectRequest(BaseModel):
    """The body of `POST /v1/select`. `bundle` may be left out when one is served, `device` as on the command line."""

    model_config = ConfigDict(extra="forbid")

    bundle: str | None = Field(default=None, max_length=MAX_NAME)
    device: str | None = Field(default=None, max_length=MAX_NAME, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    budget: Budget = Budget()
    battery: Battery | None = None

    @field_validator("budget")
    @classmethod
    def _without_a_plan(cls, budget: Budget) -> Budget:
        if budget.plan is not None:
            raise ValueError("plan: allowed is none here; the device's runtime keeps a plan's account")
        return budget


class _Problem(Exception):
    def __init__(self, status: int, detail: str, **more: Any) -> None:
        super().__init__(detail)
        self.status, self.detail, self.more = status, detail, more


def create_app(bundles: Sequence[Bundle]) -> Flask:
    """The WSGI application for opened bundles. Raises BundleError when two of them have the same name."""
    served: dict[str, Bundle] = {}
    for bundle in bundles:
        if bundle.name in served:
            raise BundleError(f"two bundles are named {bundle.name!r}; rename a folder")
        served[bundle.name] = bundle
    app = Flask("sortednet", static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = MAX_BODY_BYTES + 1  # a body sent in chunks is cut there: see _body
    selectors: dict[tuple[str, str | None], tuple[tuple[str, ...], Selector]] = {}

    @app.get("/healthz")
    def healthz() -> Response:
        return _json({"status": "alive"})

    @app.get("/readyz")
    def readyz() -> Response:
        return _json({"status": "ready", "bundles": sorted(served)})

    @app.get("/v1/bundles")
    def bundles_served() -> Response:
        return _json({"bundles": [_summary(bundle) for bundle in served.values()]})

    @app.get("/v1/bundles/<name>")
    def one_bundle(name: str) -> Response:
        return _json(inspect(_named(served, name)))

    @app.post("/v1/select")
    def select() -> Response:
        try:
            query = SelectRequest.model_validate_json(_body())
        except ValidationError as error:
            raise _Problem(422, "the request does not fit its schema", errors=_field_errors(error)) from None
        bundle = _only(served) if query.bundle is None else _named(served, query.bundle)
        try:
            selector = _selector(selectors, bundle, query.device)
        except (BundleError, BudgetError) as error:
            raise _Problem(404, str(error)) from None
        return _json(selector.select(query.budget, query.battery)._asdict())

    @app.errorhandler(_Problem)
    def problem(error: _Problem) -> Response:
        return _problem_details(error.status, error.detail, error.more)

    @app.errorhandler(HTTPException)
    def http_error(error: HTTPException) -> Response:
        response = _problem_details(error.code or 500, error.description or "", {})
        for name, value in error.get_headers():
            if name == "Allow":
                response.headers[name] = value
        return response

    @app.errorhandler(Exception)
    def unexpected(error: Exception) -> Response:
        app.logger.exception("unexpected error", exc_info=error)
        return _problem_details(500, "unexpected error; the service's log says more", {})

    return app


def serve(app: Flask, *, host: str, port: int, threads: int = 4) -> None:
    """Serves until SIGTERM or SIGINT; requests in flight are answered first.

    ONNX Runtime must not have been imported: it starts a thread that a forked worker does not have and aborts without
    at its end (1.32). This module and what it imports do without it.
    """
    from gunicorn.app.base import BaseApplication

    class Server(BaseApplication):  # type: ignore[misc]
        def load_config(self) -> None:
            self.cfg.set("bind", f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
            self.cfg.set("worker_class", "gthread")
            self.cfg.set("threads", threads)
            self.cfg.set("proc_name", "sortednet")

        def load(self) -> Flask:
            return app

    Server().run()


def _body() -> bytes:
    """The request's body. Raises RequestEntityTooLarge, also for one whose length was not announced."""
    body = request.get_data()
    if len(body) > MAX_BODY_BYTES:
        raise RequestEntityTooLarge
    return body


def _selector(
    cache: dict[tuple[str, str | None], tuple[tuple[str, ...], Selector]], bundle: Bundle, device: str | None
) -> Selector:
    """A selector is built once per bundle and device, and again when profiles come or go or are measured anew."""
    if device is not None and device not in bundle.devices():
        raise BundleError(f"device {device!r}: no profile; there are {', '.join(bundle.devices()) or 'none'}")
    state = tuple(f"{path.name}:{path.stat().st_mtime_ns}" for path in sorted((bundle.path / "profiles").glob("*.json")))
    found = cache.get((bundle.name, device))
    if found is None or found[0] != state:
        found = cache[(bundle.name, device)] = (state, selector_for(bundle, device))
    return found[1]


def _named(served: Mapping[str, Bundle], name: str) -> Bundle:
    if name not in served:
        raise _Problem(404, f"bundle {name!r} is not served; there are {', '.join(served)}")
    return served[name]


def _only(served: Mapping[str, Bundle]) -> Bundle:
    if len(served) != 1:
        names = ", ".join(served)
        raise _Problem(422, "which bundle?", errors=[{"field": "bundle", "value": None, "message": f"allowed are {names}"}])
    return next(iter(served.values()))


def _summary(bundle: Bundle) -> dict[str, Any]:
    manifest = bundle.manifest
    return {
        "name": bundle.name,
        "family": manifest.family,
        "submodels": len(manifest.submodels),
        "bytes_total": bundle.bytes_total,
        "devices": bundle.devices(),
    }


def _field_errors(error: ValidationError) -> list[dict[str, Any]]:
    found = []
    for item in error.errors(include_url=False, include_context=False):
        value = item["input"] if isinstance(item["input"], (str, int, float, bool, type(None))) else None
        safe = value if not isinstance(value, float) or (value == value and abs(value) != float("inf")) else str(value)
        found.append({"field": ".".join(str(part) for part in item["loc"]), "value": safe, "message": item["msg"]})
    return found


def _json(document: Mapping[str, Any]) -> Response:
    return Response(json.dumps(document), mimetype="application/json")


def _problem_details(status: int, detail: str, more: Mapping[str, Any]) -> Response:
    title = Response(status=status).status.partition(" ")[2].title()
    body = {"type": "about:blank", "title": title, "status": status, "detail": detail, **more}
    return Response(json.dumps(body), status=status, mimetype="application/problem+json")
