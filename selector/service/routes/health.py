"""`/healthz`, `/readyz`: is the process alive, can it answer."""

from flask import Blueprint, Response, current_app

from selector.service.state import state
from selector.service.web.bodies import json_answer
from selector.service.web.openapi import describe
from selector.service.web.problems import Problem
from selector.service.web.schemas import Health, Readiness

blueprint = Blueprint("health", __name__)


@blueprint.get("/healthz")
@describe("Is the process alive", tag="service", answers={200: Health})
def healthz() -> Response:
    return json_answer({"status": "alive"})


@blueprint.get("/readyz")
@describe("Can it answer", tag="service", answers={200: Readiness}, problems={503: "Not as yet, or not any more"})
def readyz() -> Response:
    """Every bundle is served as it lies in its folder, and what the first request needs is open."""
    computing = [current_app.extensions.get(f"sortednet.{name}") for name in ("predictor", "generating")]
    problems = list(state().served.problems().values())
    if any(one is not None and one.warming for one in computing):
        problems.append("sessions are being opened")
    if problems:
        raise Problem(503, "; ".join(problems), headers={"Retry-After": "1"})
    return json_answer({"status": "ready", "bundles": sorted(state().bundles)})
