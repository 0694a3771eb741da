"""`POST /v1/generate`: a prompt and a budget → the text that follows, token by token."""

from __future__ import annotations

from flask import Blueprint, Response, current_app, g, request

from exporter.bundle import Bundle
from selector.service.fleet.database import StoreUnavailable
from selector.service.fleet.tokens import GENERATE
from selector.service.generate.generating import ClientGone, Generating
from selector.service.generate.schemas import EndDocument, GenerateAnswer, GenerateRequest, PieceDocument
from selector.service.generate.streams import CLIENT_GONE, SSE, Events, client_gone, event, noted_failure, streamed
from selector.service.generate.text import Text
from selector.service.predict.gate import Overloaded
from selector.service.routes.predict import overloaded
from selector.service.state import state
from selector.service.web.bearer import bearer, count
from selector.service.web.bodies import json_answer, parsed_body
from selector.service.web.openapi import Answer, describe

blueprint = Blueprint("generate", __name__, url_prefix="/v1")
blueprint.register_error_handler(Overloaded, overloaded)


@blueprint.errorhandler(ClientGone)
def nobody_reads(_: ClientGone | None = None) -> Response:
    return Response(status=CLIENT_GONE)


@blueprint.post("/generate")
@describe(
    "Generate text by the sub-model that fits a budget",
    tag="generate",
    request=GenerateRequest,
    answers={
        200: Answer("The text: events, or at once", {SSE: PieceDocument | EndDocument, "application/json": GenerateAnswer})
    },
    problems={
        401: "No key, or an unknown one, where the service asks for one",
        403: "The key is not for this",
        404: "No such bundle or device",
        429: "Too many requests",
        500: "A damaged file of the bundle",
        501: "Text, on a service that cannot read it",
        503: "Overload: it would be late; try again later",
    },
)
def generate() -> Response:
    """`budget.token_ms` and `budget.first_token_ms` are what a token may take, and the first one from the request on: the best
    sub-model that keeps them generates, and another one goes on where they are not kept any more. As events
    (`text/event-stream`) each token is one, and the last is named `end`; an `error` may end it before. A client that goes ends
    its text."""
    query = parsed_body(GenerateRequest, generating().options.body_bytes)
    bundle = state().standing(query.bundle)
    admitted(bundle, query.device)
    gone = client_gone()
    text = generating().begin(bundle, query.device, query.text, query.options.given(), query.budget, g.received, gone)
    if not query.stream:
        found = whole(text, gone)
        if found is None:
            return nobody_reads()
        said, tokens = found
        return json_answer({"text": said, "tokens": tokens, **text.document()})
    failed = noted_failure()
    return streamed(
        Events(
            text,
            gone,
            of_piece=lambda one: event({"text": one.text, "tokens": one.tokens, "submodel": one.submodel, "ms": one.ms}),
            end=lambda: event(text.document(), "end"),
            failed=lambda error: event(failed(error), "error"),
        )
    )


def generating() -> Generating:
    """Of the application that answers the present request."""
    found: Generating = current_app.extensions["sortednet.generating"]
    return found


def admitted(bundle: Bundle, device: str | None) -> None:
    """Counts the request against its key's rate, or its address's. Raises Problem 401, 403 and 429, and StoreUnavailable where
    keys are asked for; without them a store that does not answer counts nothing."""
    limit = state().generate_limit(generating().options.rate)
    if generating().options.keys:
        token = bearer(state().fleet.store.tokens, GENERATE, bundle.name, device or "")
        key, who = token.id, f"token {token.id}"
    else:
        key = f"generate {request.remote_addr}"
        who = f"address {request.remote_addr}"
    if limit is not None:
        try:
            count(limit, key, who)
        except StoreUnavailable:
            if generating().options.keys:
                raise


def whole(text: Text, gone: object) -> tuple[str, list[int]] | None:
    """All of it; None where the client has gone meanwhile."""
    assert callable(gone)
    said, tokens = [], list[int]()
    try:
        for piece in text:
            said.append(piece.text)
            tokens += piece.tokens
            if gone():
                text.gone()
                return None
    finally:
        text.close()
    return "".join(said), tokens
