"""`/v1/bundles`: what is served."""

from __future__ import annotations

from typing import Any

from flask import Blueprint, Response

from exporter.bundle import Bundle
from selector.choose.inspection import inspect
from selector.service.state import state
from selector.service.web.bodies import compressed, json_answer
from selector.service.web.openapi import describe
from selector.service.web.schemas import BundleDocument, BundleList

blueprint = Blueprint("bundles", __name__, url_prefix="/v1/bundles")


@blueprint.get("")
@describe("What is served", tag="bundles", answers={200: BundleList})
def bundles() -> Response:
    return json_answer({"bundles": [_summary(bundle) for bundle in state().bundles.values()]})


@blueprint.get("/<name>")
@describe(
    "What a bundle holds",
    tag="bundles",
    answers={200: BundleDocument},
    problems={404: "No such bundle", 500: "Its cascades.json is damaged"},
)
def one_bundle(name: str) -> Response:
    bundle = state().bundle(name)
    return compressed(json_answer(inspect(bundle, state().cascades(bundle))))


def _summary(bundle: Bundle) -> dict[str, Any]:
    manifest = bundle.manifest
    return {
        "name": bundle.name,
        "family": manifest.family,
        "submodels": len(manifest.submodels),
        "bytes_total": bundle.bytes_total,
        "devices": bundle.devices(),
    }
