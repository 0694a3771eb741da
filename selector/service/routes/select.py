"""`POST /v1/select`: which sub-model for a budget."""

from __future__ import annotations

from typing import Any

from flask import Blueprint, Response
from pydantic_core import from_json

from exporter.bundle import Bundle
from selector.choose.lengths import as_cut, beyond_context, within_context
from selector.choose.selector import Selector
from selector.service.fleet.database import StoreUnavailable
from selector.service.state import State, state
from selector.service.unknown_devices import predicted_selector, selector_of
from selector.service.web.bodies import body, json_answer, validated
from selector.service.web.metrics import metrics
from selector.service.web.openapi import Answer, describe
from selector.service.web.problems import Problem, refuse_other_metric, refuse_tokens, store_unavailable, wrong_field
from selector.service.web.schemas import SelectionDocument, SelectionsDocument, SelectMany, SelectRequest

blueprint = Blueprint("select", __name__, url_prefix="/v1")

MAX_SELECT_BYTES = 1024 * 1024
"""A thousand queries, or a profile of some thousand sub-models."""


@blueprint.post("/select")
@describe(
    "Which sub-model for a budget",
    tag="select",
    request=SelectRequest | SelectMany,
    answers={200: Answer("The choice, or one for each query in its place", SelectionDocument | SelectionsDocument)},
    problems={
        404: "No such bundle, or no profile of the device",
        500: "Cascades are asked for, and the bundle's cascades.json is damaged",
        503: "The store of profiles does not answer",
    },
)
def select() -> Response:
    """For a device by name, by a `profile` in the query, or, for an unknown one, by a few `measured` sub-models from which
    the others are predicted. Where nothing fits, `feasible` is false, and the answer is the nearest sub-model and what it
    misses. With `cascades` the answer may be a cascade of the bundle, at its expected cost. Of many queries each is answered in
    its place, by a selection or by a problem."""
    document, shared = body(MAX_SELECT_BYTES), state()
    if _asks_many(document):
        queries = validated(SelectMany, document).queries
        return json_answer({"selections": [_answer_or_problem(shared, query) for query in queries]})
    return json_answer(_answer(shared, validated(SelectRequest, document)))


def _asks_many(document: bytes) -> bool:
    """Whether it has the key; without it the words cannot be there, and the document need not be read twice."""
    if b'"queries"' not in document:
        return False
    try:
        found = from_json(document)
    except ValueError:
        return False
    return isinstance(found, dict) and "queries" in found


def _answer(shared: State, query: SelectRequest) -> dict[str, Any]:
    bundle = shared.bundle(query.bundle)
    refuse_other_metric(query.budget, bundle.metric)
    selector = _selector(shared, bundle, query)
    if not selector.offered.contexts:
        refuse_tokens(query.budget)
    if name := beyond_context(bundle, query.budget):
        raise wrong_field(f"budget.{name}", getattr(query.budget, name), within_context(bundle))
    budget = query.budget.model_copy(update={"length": as_cut(bundle, query.budget.length)})
    selection = selector.select(budget, query.battery)
    metrics().selected(bundle.name, selection)
    return selection.document()


def _answer_or_problem(shared: State, query: SelectRequest) -> dict[str, Any]:
    try:
        return _answer(shared, query)
    except Problem as problem:
        return problem.document()
    except StoreUnavailable as error:
        return store_unavailable(error).document()


def _selector(shared: State, bundle: Bundle, query: SelectRequest) -> Selector:
    cascades = shared.cascades(bundle) if query.cascades else ()
    if query.profile is not None:
        return selector_of(bundle, query.profile, cascades)
    if query.measured is not None:
        return predicted_selector(bundle, query.measured, cascades)
    return shared.selector(bundle, query.device, cascades)
