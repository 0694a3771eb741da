"""`/healthz`, `/readyz`: is the process alive, can it answer."""

from flask import Blueprint, Response

from selector.service.state import json_answer, state

blueprint = Blueprint("health", __name__)


@blueprint.get("/healthz")
def healthz() -> Response:
    return json_answer({"status": "alive"})


@blueprint.get("/readyz")
def readyz() -> Response:
    return json_answer({"status": "ready", "bundles": sorted(state().bundles)})
