"""`/v1/bundles/{name}/files`, `/blobs`, `/subsets`: what devices fetch. `sortednet pull` is the client."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from urllib.parse import quote

from flask import Blueprint, Response, current_app
from flask.blueprints import BlueprintSetupState

from exporter.bundle import Bundle, BundleError
from exporter.bundle.refit import refit
from selector.service.files.artefacts import blob_answer, file_answer
from selector.service.files.subsets import BusyError, SubsetStore, key_of, submodels_of
from selector.service.state import state
from selector.service.web.bodies import compressed, json_answer, parsed_body
from selector.service.web.openapi import Answer, Parameter, View, describe
from selector.service.web.problems import Problem, refuse_other_metric, refuse_tokens, wrong_field
from selector.service.web.schemas import SubsetDocument, SubsetRequest

blueprint = Blueprint("files", __name__, url_prefix="/v1/bundles")

MAX_SUBSET_BYTES = 2 * 1024 * 1024
"""Ten thousand names of sub-models."""

_BUNDLE = Parameter("name", "path", str, "The bundle's name")
_PATH = Parameter("path", "path", str, "As the manifest names it")
_CONDITIONS = [
    Parameter("Range", "header", str, "bytes=FIRST-LAST"),
    Parameter("If-Range", "header", str, "The ETag that a range must still be of"),
    Parameter("If-None-Match", "header", str, "ETags that are known already"),
    Parameter("If-Match", "header", str, "ETags that are wanted"),
]
_BYTES = {"application/octet-stream": None, "application/json": None}
_ANSWERS: dict[int, Answer] = {
    200: Answer("The file", _BYTES, headers={"ETag": "Its SHA-256"}),
    206: Answer("A part of it", _BYTES, headers={"ETag": "The whole file's SHA-256", "Content-Range": "Which part"}),
    304: Answer("It is one with a known ETag", headers={"ETag": "Its SHA-256"}),
}
_PROBLEMS = {
    404: "No such bundle or file",
    412: "It has another ETag",
    416: "No such range",
    503: "The file is being replaced, or cannot be cut now: try again",
}


@blueprint.record_once
def _with_a_store(setup: BlueprintSetupState) -> None:
    setup.app.extensions.setdefault("sortednet-subsets", SubsetStore())


def _describe_file(summary: str, *parameters: Parameter) -> Callable[[View], View]:
    """Of a path that answers with a file, whole or in part."""
    everything = [_BUNDLE, *parameters, *_CONDITIONS]
    return describe(summary, tag="files", parameters=everything, answers=_ANSWERS, problems=_PROBLEMS)


@blueprint.get("/<name>/files/<path:path>")
@_describe_file("A file of a bundle", _PATH, Parameter("sha256", "query", str, "Its hash: may then be kept forever"))
def file(name: str, path: str) -> Response:
    """An artefact of the bundle: what its manifest lists, `manifest.json`, or `profiles/DEVICE.json`."""
    return file_answer(state().bundle(name), path)


@blueprint.get("/<name>/blobs/<sha256>")
@_describe_file("A file of a bundle by its hash", Parameter("sha256", "path", str, "64 hexadecimal digits"))
def blob(name: str, sha256: str) -> Response:
    """The artefact whose content has this hash."""
    return blob_answer(state().bundle(name), sha256)


@blueprint.post("/<name>/subsets")
@describe(
    "A part of a bundle",
    tag="files",
    parameters=[_BUNDLE],
    request=SubsetRequest,
    answers={200: SubsetDocument},
    problems={404: "No such bundle, or no profile of the device", 503: _PROBLEMS[503]},
)
def make_subset(name: str) -> Response:
    """Cuts the part of the bundle that holds these sub-models, or the best one for the budget."""
    bundle = state().bundle(name)
    query = parsed_body(SubsetRequest, MAX_SUBSET_BYTES)
    if query.submodels is not None:
        selection, submodels, device = None, query.submodels, query.device
        _check_names(bundle, submodels)
    else:
        assert query.budget is not None
        refuse_other_metric(query.budget, bundle.metric)
        selector = state().selector(bundle, query.device)
        if not selector.offered.contexts:
            refuse_tokens(query.budget)
        selection = selector.select(query.budget)
        submodels, device = [selection.submodel], selection.device
    profile = None if device is None else state().profile(bundle, device, sent=query.device is not None)
    part = _part(bundle, submodels)
    cut = None if profile is None else refit(profile, bundle.manifest, part.manifest)
    document = {
        "bundle": bundle.name,
        "submodels": list(part.submodels),
        "files": f"/v1/bundles/{quote(bundle.name, safe='')}/subsets/{key_of(bundle, submodels)}/files/",
        "selection": None if selection is None else selection.document(),
        "profile": None if cut is None else cut.model_dump(mode="json"),
        "manifest": part.manifest.model_dump(mode="json"),  # the file may have had to make room by now
    }
    return compressed(json_answer(document))


@blueprint.get("/<name>/subsets/<key>/files/<path:path>")
@_describe_file("A file of a part of a bundle", Parameter("key", "path", str, "From the answer to POST"), _PATH)
def subset_file(name: str, key: str, path: str) -> Response:
    """An artefact of a part, which is cut again where it is no longer there."""
    bundle = state().bundle(name)
    submodels = submodels_of(bundle, key)
    if submodels is None:
        raise Problem(404, f"subset {key!r}: the bundle {bundle.name!r} has none of this name; ask for it with POST")
    if path.startswith("profiles/"):
        raise Problem(404, "profiles come with the answer to POST, or from the whole bundle")
    return file_answer(_part(bundle, submodels), path)


def _check_names(bundle: Bundle, submodels: Sequence[str]) -> None:
    """Raises Problem 422 naming the first that is not in the bundle."""
    for place, submodel in enumerate(submodels):
        if submodel not in bundle.submodels:
            message = f"is not in this bundle; it holds {', '.join(list(bundle.submodels)[:8])} …"
            raise wrong_field(f"submodels.{place}", submodel, message, f"sub-model {submodel!r} is not in this bundle")


def _part(bundle: Bundle, submodels: Sequence[str]) -> Bundle:
    """Raises Problem 503 where it cannot be cut now."""
    store: SubsetStore = current_app.extensions["sortednet-subsets"]
    try:
        return store.part(bundle, submodels)
    except BusyError as error:
        raise Problem(503, f"{error}; try again in a second", headers={"Retry-After": "1"}) from None
    except BundleError as error:
        current_app.logger.error("subset of %s: %s", bundle.name, error)
        raise Problem(503, "the subset cannot be made at the moment; the service's log says why") from None
