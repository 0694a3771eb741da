"""`POST /v1/select`: which sub-model for a budget."""

from __future__ import annotations

from flask import Blueprint, Response
from pydantic import ValidationError

from selector.service.problems import Problem, field_errors
from selector.service.schemas import SelectRequest
from selector.service.state import body, json_answer, state

blueprint = Blueprint("select", __name__, url_prefix="/v1")


@blueprint.post("/select")
def select() -> Response:
    try:
        query = SelectRequest.model_validate_json(body())
    except ValidationError as error:
        raise Problem(422, "the request does not fit its schema", errors=field_errors(error)) from None
    selector = state().selector(state().bundle(query.bundle), query.device)
    return json_answer(selector.select(query.budget, query.battery)._asdict())
