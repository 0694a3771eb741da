"""`/v1/bundles/{name}/rings`: a new version of a bundle, which devices have it, and how it does there."""

from __future__ import annotations

from typing import Any

from flask import Blueprint, Response

from device_profiles.schema import Name
from exporter.bundle import Bundle
from selector.service.fleet.rings import plain_name
from selector.service.fleet.tokens import WRITE
from selector.service.state import state
from selector.service.web.arguments import checked_name
from selector.service.web.bearer import bearer, count
from selector.service.web.bodies import compressed, model_answer, parsed_body
from selector.service.web.openapi import Parameter, describe
from selector.service.web.ring_schemas import ModelRingDocument, PlacedDocument, RingsDocument, TrialDocument, VersionDocument
from selector.ship.state import Report

blueprint = Blueprint("rings", __name__, url_prefix="/v1/bundles/<name>/rings")

MAX_REPORT_BYTES = 16 * 1024
WITHDRAWN = "the service does not offer it any more"
"""Why a device is not to try a version any longer that is neither the new one nor everyone's."""
SHOWN = 100
"""Devices: those that told last."""

_BUNDLE = Parameter("name", "path", str, "The bundle's name")
_PROBLEMS = {404: "No such bundle", 503: "The store does not answer, or the service has none"}


@blueprint.get("")
@describe("A new version, and how it does", tag="rings", parameters=[_BUNDLE], answers={200: RingsDocument}, problems=_PROBLEMS)
def rings(name: str) -> Response:
    """Which version devices get that do not say who they are, and, where a new one is tried, what devices told of it by model.
    They all get it once all of one model do and it was stopped for none."""
    bundle = state().bundle(plain_name(name))
    canary = state().canary(bundle)
    if canary is None:
        everyone = _version(bundle)
        return model_answer(RingsDocument(everyone=everyone, canary=None, models=[], devices=[]))
    key = (bundle.name, state().version(canary)[0])
    models = state().rings.models(*key)
    found = {one.ring for one in models}
    return compressed(
        model_answer(
            RingsDocument(
                everyone=_version(canary if "all" in found and "stopped" not in found else bundle),
                canary=_version(canary),
                models=[ModelRingDocument(**one._asdict()) for one in models],
                devices=[TrialDocument(**one._asdict()) for one in state().rings.devices(*key, SHOWN)],
            )
        )
    )


@blueprint.put("/<device>")
@describe(
    "What a device tells of the version that it tries, and which it gets",
    tag="rings",
    parameters=[_BUNDLE, Parameter("device", "path", Name, "The device's name")],
    request=Report,
    answers={200: PlacedDocument},
    problems={**_PROBLEMS, 429: "Too many requests of this token"},
    scope=WRITE,
)
def tell(name: str, device: str) -> Response:
    """Keeps how a new version does on the device, and answers which version it gets: the new one where it is among the first of
    its model, where it has accepted it, or where all of its model get it."""
    bundle = state().bundle(plain_name(name))
    checked_name("device", device)
    token = bearer(state().fleet.store.tokens, WRITE, bundle.name, device)
    count(state().put_limit, token.id, f"token {token.id}")
    report = parsed_body(Report, MAX_REPORT_BYTES)
    state().rings.tell(bundle.name, device, report, token=token.id)
    canary = state().canary(bundle)
    tried = report.version if report.state == "trying" and report.version != state().version(bundle)[0] else None
    if canary is None:
        withdrawn = None if tried is None else WITHDRAWN
        return model_answer(
            PlacedDocument(**dict(_version(bundle)), ring="all", why="there is no new version", withdrawn=withdrawn)
        )
    new = state().version(canary)[0]
    gets, why = state().rings.place(bundle.name, new, device, report.model, tries=report.tries, token=token.id)
    withdrawn = None if gets or tried is None else why if tried == new else WITHDRAWN
    shown: dict[str, Any] = dict(_version(canary if gets else bundle))
    return model_answer(PlacedDocument(**shown, ring="canary" if gets else "all", why=why, withdrawn=withdrawn))


def _version(bundle: Bundle) -> VersionDocument:
    version, number = state().version(bundle)
    return VersionDocument(bundle=bundle.name, version=version, number=number)
