"""`/v2`: the Open Inference Protocol, version 2, for clients that know no budget: KServe, Triton's client and others.

A bundle is a model; the deadline is the parameter `timeout`, the rest of a budget are parameters by their names.
"""

from __future__ import annotations

from importlib.metadata import version as package_version

from flask import Blueprint, Response, g, request
from pydantic_core import from_json, to_json

from exporter.bundle import Bundle
from selector.service.predict.arrays import ArrayError
from selector.service.predict.gate import Overloaded
from selector.service.predict.oip import answered, metadata_of, query_of, split_body, tensors_of, texts_of, wanted_of
from selector.service.predict.oip_schemas import (
    InferAnswer,
    InferRequest,
    LiveDocument,
    ModelDocument,
    ModelReadyDocument,
    ReadyDocument,
    ServerDocument,
)
from selector.service.predict.predictor import Prediction
from selector.service.routes.health import readyz
from selector.service.routes.predict import overloaded, predictor
from selector.service.state import state
from selector.service.web.bodies import body, model_answer
from selector.service.web.openapi import Answer, Parameter, describe
from selector.service.web.problems import MEDIA_TYPE, Problem

JSON, BYTES = "application/json", "application/octet-stream"
LENGTH = "Inference-Header-Content-Length"
_UNKNOWN = {404: "No such bundle, or not in this version"}

blueprint = Blueprint("oip", __name__, url_prefix="/v2")
blueprint.register_error_handler(Overloaded, overloaded)


@blueprint.get("")
@describe("The service, by the Open Inference Protocol", tag="oip", answers={200: ServerDocument})
def server() -> Response:
    return model_answer(
        ServerDocument(name="sortednet", version=package_version("sortednet"), extensions=["binary_tensor_data"])
    )


@blueprint.get("/health/live")
@describe("Is the process alive", tag="oip", answers={200: LiveDocument})
def live() -> Response:
    return model_answer(LiveDocument(live=True))


@blueprint.get("/health/ready")
@describe("Can it answer", tag="oip", answers={200: ReadyDocument}, problems={503: "Not as yet, or not any more"})
def ready() -> Response:
    readyz()  # raises
    return model_answer(ReadyDocument(ready=True))


@blueprint.get("/models/<name>/versions/<version>", endpoint="model_version")
@blueprint.get("/models/<name>")
@describe("A bundle's inputs and outputs", tag="oip", answers={200: ModelDocument}, problems=_UNKNOWN)
def model(name: str, version: str | None = None) -> Response:
    bundle = _bundle(name, version)
    manifest = bundle.manifest
    return model_answer(
        ModelDocument(
            name=bundle.name,
            versions=[_version(bundle)],
            platform="onnxruntime_onnx",
            inputs=metadata_of(manifest.inputs),
            outputs=metadata_of(manifest.outputs),
            properties={"task": manifest.task.kind, "metric": manifest.task.metric, "submodels": str(len(manifest.submodels))},
        )
    )


@blueprint.get("/models/<name>/versions/<version>/ready", endpoint="model_ready_version")
@blueprint.get("/models/<name>/ready")
@describe(
    "Can a bundle answer",
    tag="oip",
    answers={200: ModelReadyDocument},
    problems={**_UNKNOWN, 503: "It was replaced and is being loaded, or cannot be"},
)
def model_ready(name: str, version: str | None = None) -> Response:
    bundle = _bundle(name, version)
    if problem := state().served.problems().get(bundle.name):
        raise Problem(503, problem, headers={"Retry-After": "1"})
    return model_answer(ModelReadyDocument(name=bundle.name, ready=True))


@blueprint.post("/models/<name>/versions/<version>/infer", endpoint="infer_version")
@blueprint.post("/models/<name>/infer")
@describe(
    "Run inputs by the sub-model that fits a budget",
    tag="oip",
    parameters=[Parameter(LENGTH, "header", str, "Bytes of the JSON, where the values of tensors follow it")],
    request={JSON: InferRequest, BYTES: None},
    answers={200: Answer("The outputs, and what was chosen", {JSON: InferAnswer, BYTES: None})},
    problems={
        **_UNKNOWN,
        500: "An output that is NaN or infinite, which JSON has no number for; or a damaged file of the bundle",
        501: "Texts, on a service that cannot read them",
        503: "Overload: it would be late; try again later",
    },
)
def infer(name: str, version: str | None = None) -> Response:
    """As `POST /v1/predict`: the parameter `timeout`, in microseconds, is the deadline of the whole request, and parameters
    such as `min_quality` or `energy_mj` are those of its budget. A bundle that reads texts takes them as the input `text` (and
    `text_pair`) of datatype BYTES."""
    options = predictor().options
    data = body(options.body_bytes, (JSON, BYTES, ""))
    query, rest = split_body(data, request.headers.get(LENGTH), options.json_bytes)
    bundle = _bundle(name, version)
    asked, wanted = query_of(bundle, query.parameters or {}), wanted_of(query, bundle)
    texts = texts_of(query, rest)
    if texts is None:
        found = predictor().predict(bundle, asked, tensors_of(query, rest, bundle, options.shapes), g.received, g.begun)
    else:
        found = predictor().predict(bundle, asked, predictor().encoded(bundle, texts), g.received, g.begun)
    return _answer(bundle, query, found, wanted)


@blueprint.after_request
def error_named(response: Response) -> Response:
    """The protocol's clients read `error`, and look for nothing else."""
    if response.mimetype == MEDIA_TYPE:
        problem = from_json(response.get_data())
        said = [f"{one['field']} = {one['value']!r}: {one['message']}" for one in problem.get("errors", ())]
        response.set_data(to_json({"error": "; ".join([problem["detail"], *said]), **problem}))
    return response


def _answer(bundle: Bundle, query: InferRequest, found: Prediction, wanted: dict[str, bool]) -> Response:
    try:
        outputs, raw = answered(found.outputs, wanted)
    except ArrayError as error:
        raise Problem(500, f"{error}; binary data can hold them, JSON cannot") from None
    said = {name: value for name, value in found.selection.document().items() if isinstance(value, (bool, int, float, str))}
    times: dict[str, int | float | str] = {"latency_ms": found.latency_ms, "queued_ms": found.queued_ms}
    times |= {"energy_source": found.energy_source} | ({} if found.energy_mj is None else {"energy_mj": found.energy_mj})
    of_an_example = ("latency_ms", "energy_mj")
    document = InferAnswer(
        model_name=bundle.name,
        model_version=_version(bundle),
        id=query.id,
        parameters={f"expected_{name}" if name in of_an_example else name: value for name, value in said.items()} | times,
        outputs=outputs,
    )
    content = document.model_dump_json(exclude_none=True).encode()
    if not any(wanted.values()):
        return Response(content, mimetype=JSON)
    return Response(content + raw, mimetype=BYTES, headers={LENGTH: str(len(content))})


def _bundle(name: str, version: str | None) -> Bundle:
    """Raises Problem 404."""
    bundle = state().standing(name)
    if version not in (None, _version(bundle)):
        raise Problem(404, f"version {version!r}: bundle {name!r} is served in version {_version(bundle)}")
    return bundle


def _version(bundle: Bundle) -> str:
    return bundle.manifest.sha256[:12]
