"""`/healthz`, `/readyz`: is the process alive, can it answer."""

from flask import Blueprint, Response

from selector.service.state import state
from selector.service.web.bodies import json_answer
from selector.service.web.openapi import describe
from selector.service.web.schemas import Health, Readiness

blueprint = Blueprint("health", __name__)


@blueprint.get("/healthz")
@describe("Is the process alive", tag="service", answers={200: Health})
def healthz() -> Response:
    return json_answer({"status": "alive"})


@blueprint.get("/readyz")
@describe("Can it answer", tag="service", answers={200: Readiness})
def readyz() -> Response:
    return json_answer({"status": "ready", "bundles": sorted(state().bundles)})
