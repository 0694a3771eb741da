"""`POST /v1/predict`: inputs or texts, and a budget → outputs and what was chosen, in JSON, .npy or .npz.

`GET /v1/bundles/{name}/runtime`: what this host's runtime does.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Annotated, Any

from flask import Blueprint, Response, current_app, g, request
from pydantic import Field, ValidationError
from pydantic_core import from_json
from werkzeug.exceptions import NotAcceptable

from exporter.bundle import Bundle
from selector.service.predict.arrays import (
    NPY,
    NPZ,
    Array,
    ArrayError,
    finite_lists,
    from_lists,
    from_npy,
    from_npz,
    to_npy,
    to_npz,
)
from selector.service.predict.gate import Overloaded
from selector.service.predict.predictor import Prediction, Predictor, input_problem
from selector.service.predict.schemas import PredictAnswer, PredictQuery, PredictRequest, RuntimeAnswer
from selector.service.predict.texts import PLAIN, plain_text, texts_of
from selector.service.state import state
from selector.service.web.arguments import integer_argument
from selector.service.web.bodies import body, json_answer, parsed_body
from selector.service.web.openapi import Answer, Parameter, describe
from selector.service.web.problems import Problem, field_errors, problem_details, wrong_field

if TYPE_CHECKING:  # ONNX Runtime is not there before the server forks
    from selector.run import Encoded

JSON = "application/json"
BUDGET_HEADER = "Sortednet-Budget"
HISTORY, MOST_HISTORY = 100, 1000  # runs that the runtime's document tells of, where no other number is asked for; at most

blueprint = Blueprint("predict", __name__, url_prefix="/v1")


@blueprint.post("/predict")
@describe(
    "Run inputs by the sub-model that fits a budget",
    tag="predict",
    parameters=[
        Parameter("bundle", "query", str, "As in the JSON body; where the body is an array or a text"),
        Parameter("device", "query", str, "As in the JSON body; where the body is an array or a text"),
        Parameter("budget", "query", str, "The budget as JSON; where the body is an array or a text"),
        Parameter("battery", "query", str, "The battery as JSON; where the body is an array or a text"),
        Parameter(BUDGET_HEADER, "header", str, "The budget as JSON, where the body is an array and the query has none"),
    ],
    request={JSON: PredictRequest, NPY: None, NPZ: None, PLAIN: str},
    answers={200: Answer("The outputs, and what was chosen", {JSON: PredictAnswer, NPY: None, NPZ: None})},
    problems={
        404: "No such bundle or device",
        406: "No such type of answer",
        500: "An output that is NaN or infinite, which JSON has no number for; or a damaged file of the bundle",
        501: "Texts, on a service that cannot read them",
        503: "Overload: it would be late; try again later",
    },
)
def predict() -> Response:
    """`budget.latency_ms` is the deadline of the whole request: what it has waited is taken off before a sub-model is chosen,
    and what cannot be in time any more is refused with 503 instead of answered late. .npy and .npz bodies hold the inputs,
    a text body is one text; the answer has the type that `Accept` asks for, the request's own where anything is welcome
    (JSON for a text)."""
    kind = (request.mimetype or JSON).lower()
    if kind not in (JSON, NPY, NPZ, PLAIN):
        raise Problem(415, f"Content-Type {kind!r}; allowed are {JSON}, {NPY}, {NPZ}, {PLAIN}")
    wanted = _answer_type(JSON if kind == PLAIN else kind)
    query, bundle, inputs = _from_json() if kind == JSON else _from_text() if kind == PLAIN else _from_arrays(kind)
    if wanted == NPY and len(bundle.manifest.outputs) != 1:
        raise NotAcceptable(f"{NPY} holds one array; this bundle has {len(bundle.manifest.outputs)} outputs: ask for {NPZ}")
    return _answer(bundle, predictor().predict(bundle, query, inputs, g.received, g.begun), wanted)


@blueprint.get("/bundles/<name>/runtime")
@describe(
    "What this host's runtime does",
    tag="predict",
    parameters=[
        Parameter("name", "path", str, "The bundle's name"),
        Parameter(
            "history", "query", Annotated[int, Field(ge=0, le=MOST_HISTORY)], f"Of the latest runs so many; default {HISTORY}"
        ),
    ],
    answers={200: RuntimeAnswer},
    problems={404: "No such bundle", 422: "No such number"},
)
def runtime(name: str) -> Response:
    bundle, found = state().bundle(name), predictor()
    asked = integer_argument("history", least=0, most=MOST_HISTORY)
    runs = HISTORY if asked is None else asked
    return json_answer(
        {
            "bundle": bundle.name,
            "process": os.getpid(),
            "workers": found.workers,
            "running": found.gate.running,
            "queued": found.gate.queued,
            "slots": found.gate.slots,
            "deadlines": {name: found.deadlines[bundle.name][name] for name in ("met", "missed", "refused")},
            "runtimes": [_runtime(kept.device, kept.runtime, runs) for kept in found.opened(bundle)],
        }
    )


@blueprint.errorhandler(Overloaded)
def overloaded(error: Overloaded) -> Response:
    response = problem_details(503, f"refused early: {error.detail}", {"reason": error.reason})
    response.headers["Retry-After"] = str(error.retry_after_s)
    return response


def predictor() -> Predictor:
    """Of the application that answers the present request."""
    found: Predictor = current_app.extensions["sortednet.predictor"]
    return found


def _from_json() -> tuple[PredictQuery, Bundle, dict[str, Array] | Encoded]:
    beside = dict(request.args)
    if BUDGET_HEADER in request.headers:
        beside[BUDGET_HEADER] = request.headers[BUDGET_HEADER]
    if beside:  # a deadline that nobody heeds would be worse
        name, value = next(iter(beside.items()))
        raise wrong_field(name, value, "stands beside a JSON body; allowed is the same in it")
    query = parsed_body(PredictRequest, predictor().options.json_bytes)
    bundle, texts = state().standing(query.bundle), texts_of(query)
    if texts is not None:
        return query, bundle, predictor().encoded(bundle, texts)
    given = query.inputs or {}
    specs = {spec.name: spec for spec in bundle.manifest.inputs}
    if unknown := [name for name in given if name not in specs]:
        raise input_problem(f"inputs: {unknown[0][:80]!r} given; allowed are {', '.join(specs)}")
    shapes = predictor().options.shapes
    try:
        return query, bundle, {name: from_lists(value, specs[name], shapes) for name, value in given.items()}
    except ArrayError as error:
        raise input_problem(str(error), error.name) from None


def _from_text() -> tuple[PredictQuery, Bundle, Encoded]:
    query = _query()
    bundle = state().standing(query.bundle)
    text = plain_text(body(predictor().options.json_bytes, (PLAIN,)), request.mimetype_params.get("charset"))
    return query, bundle, predictor().encoded(bundle, [text])


def _from_arrays(kind: str) -> tuple[PredictQuery, Bundle, dict[str, Array]]:
    query = _query()
    bundle = state().standing(query.bundle)
    specs = bundle.manifest.inputs
    if kind == NPY and len(specs) != 1:
        raise input_problem(f"inputs: {NPY} holds one array; this bundle takes {', '.join(s.name for s in specs)}: send {NPZ}")
    shapes = predictor().options.shapes
    try:
        data = body(predictor().options.body_bytes, (kind,))
        inputs = {specs[0].name: from_npy(data, specs[0], shapes)} if kind == NPY else from_npz(data, specs, shapes)
    except ArrayError as error:
        raise input_problem(str(error), error.name) from None
    return query, bundle, inputs


def _query() -> PredictQuery:
    """From the query string, in which `budget` and `battery` are JSON, or the budget from a header."""
    given: dict[str, Any] = {}
    for name, texts in request.args.lists():
        if len(texts) > 1:
            raise wrong_field(name, None, "is given twice; allowed is once")
        given[name] = texts[0]
    if BUDGET_HEADER in request.headers:
        if "budget" in given:
            raise wrong_field(BUDGET_HEADER, request.headers[BUDGET_HEADER], "the query has a budget; allowed is one")
        given["budget"] = request.headers[BUDGET_HEADER]
    for name in ("budget", "battery"):
        if name in given:
            try:
                given[name] = from_json(given[name])
            except ValueError as error:
                raise wrong_field(name, given[name], f"is no JSON: {error}; allowed is an object") from None
    try:
        return PredictQuery.model_validate(given)
    except ValidationError as error:
        raise Problem(422, "the query does not fit its schema", errors=field_errors(error)) from None


def _answer_type(kind: str) -> str:
    """By `Accept`; the request's own type where anything is welcome. Raises NotAcceptable."""
    if not request.accept_mimetypes:
        return kind
    own_first = [kind, *(other for other in (JSON, NPZ, NPY) if other != kind)]
    found = request.accept_mimetypes.best_match(own_first)
    if found is None:
        raise NotAcceptable(f"Accept: allowed are {JSON}, {NPY}, {NPZ}")
    return found


def _answer(bundle: Bundle, prediction: Prediction, wanted: str) -> Response:
    selection = prediction.selection.document()
    if wanted == JSON:
        try:
            outputs = {name: finite_lists(name, array) for name, array in prediction.outputs.items()}
        except ArrayError as error:  # .npy and .npz say such values as they are
            raise Problem(500, f"{error}; {NPY} and {NPZ} can hold them, JSON cannot") from None
        times = {"latency_ms": prediction.latency_ms, "queued_ms": prediction.queued_ms}
        energy = {"energy_mj": prediction.energy_mj, "energy_source": prediction.energy_source}
        return json_answer({"outputs": outputs, **_said(bundle, prediction), "selection": selection, **times, **energy})
    data = to_npz(prediction.outputs) if wanted == NPZ else to_npy(next(iter(prediction.outputs.values())))
    response = Response(data, mimetype=wanted)
    response.headers["Sortednet-Selection"] = json.dumps(selection)
    response.headers["Sortednet-Latency-Ms"] = f"{prediction.latency_ms:.6g}"
    response.headers["Sortednet-Queued-Ms"] = f"{prediction.queued_ms:.6g}"
    if prediction.energy_mj is not None:
        response.headers["Sortednet-Energy-Mj"] = f"{prediction.energy_mj:.6g}"
    response.headers["Sortednet-Energy-Source"] = prediction.energy_source
    if prediction.texts is not None:
        response.headers["Sortednet-Truncated"] = str(prediction.texts.truncated)
    return response


def _said(bundle: Bundle, prediction: Prediction) -> dict[str, Any]:
    """Of a classification the most probable classes of each example, by name; of texts what became of them."""
    from selector.run.results import answers, spans, tagged

    task, texts, said = bundle.manifest.task, prediction.texts, dict[str, Any]()
    if found := answers(task, prediction.outputs):
        said["answers"] = [[answer._asdict() for answer in best] for best in found]
    if texts is not None:
        said |= {"tokens": texts.lengths, "truncated": texts.truncated}
        if words := tagged(task, prediction.outputs, texts):
            said["words"] = [[word._asdict() for word in text] for text in words]
        if parts := spans(task, prediction.outputs, texts):
            said["spans"] = [[span._asdict() for span in text] for text in parts]
    return said


def _runtime(device: str, found: Any, history: int) -> dict[str, Any]:
    """`found`: a Runtime, which is not imported here because ONNX Runtime is with it."""
    battery, sensors, controller = found.battery(), getattr(found, "sensors", None), found.controller
    runs = list(found.history)[-history:] if history else []
    return {
        "device": device,
        "sessions": sorted({submodel for submodel, _ in found.pool.loaded}),
        "memory_mb": found.pool.memory_used_mb,
        "slow_down": {name: controller.slow_down(name) for name in controller.slow_downs} if controller else {},
        "battery": battery.model_dump() if battery else None,
        "sensors": sensors.values() if sensors else {},
        "history": [{**record._asdict(), "met": record.met} for record in runs],
    }
