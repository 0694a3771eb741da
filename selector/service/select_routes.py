"""`POST /v1/select`: which sub-model for a budget."""

from __future__ import annotations

from flask import Blueprint, Response

from selector.service.openapi import describe
from selector.service.schemas import SelectionDocument, SelectRequest
from selector.service.state import json_answer, parsed_body, state

blueprint = Blueprint("select", __name__, url_prefix="/v1")


@blueprint.post("/select")
@describe(
    "Which sub-model for a budget",
    tag="select",
    request=SelectRequest,
    answers={200: SelectionDocument},
    problems={404: "No such bundle, or no profile of the device"},
)
def select() -> Response:
    """Where nothing fits, `feasible` is false, and the answer is the nearest sub-model and what it misses."""
    query = parsed_body(SelectRequest)
    selector = state().selector(state().bundle(query.bundle), query.device)
    return json_answer(selector.select(query.budget, query.battery)._asdict())
