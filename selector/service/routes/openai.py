"""`/v1/completions`, `/v1/chat/completions`, `/v1/models`: as clients of OpenAI's interface expect them."""

from __future__ import annotations

from typing import Any, NamedTuple

from flask import Blueprint, Response, g
from pydantic_core import to_json
from werkzeug.exceptions import HTTPException

from exporter.bundle import Bundle
from selector.service.fleet.database import StoreUnavailable
from selector.service.generate.generating import ClientGone, generates
from selector.service.generate.openai import (
    COMPLETION_TOKENS,
    FINISH,
    ChatCompletion,
    ChatRequest,
    Completion,
    CompletionRequest,
    FailureDocument,
    Model,
    ModelList,
    chat_chunk,
    failure,
    head,
    usage,
)
from selector.service.generate.streams import SSE, Events, client_gone, event, noted_failure, streamed
from selector.service.generate.text import Text
from selector.service.predict.gate import Overloaded
from selector.service.routes.generate import admitted, generating, nobody_reads, whole
from selector.service.state import state
from selector.service.web.access import request_id
from selector.service.web.bodies import json_answer, model_answer, parsed_body
from selector.service.web.openapi import Answer, describe
from selector.service.web.problems import Problem, store_unavailable, unexpected, wrong_field

blueprint = Blueprint("openai", __name__, url_prefix="/v1")

blueprint.register_error_handler(ClientGone, nobody_reads)

_PROBLEMS = {
    401: "No key, or an unknown one, where the service asks for one",
    403: "The key is not for this",
    404: "No such model",
    429: "Too many requests",
    500: "A damaged file of the bundle",
    501: "Text, on a service that cannot read it",
    503: "Overload: it would be late; try again later",
}


@blueprint.post("/completions")
@describe(
    "Complete a text, as OpenAI's clients ask for it",
    tag="generate",
    request=CompletionRequest,
    answers={200: Answer("The text: at once, or events", {"application/json": Completion, SSE: Completion})},
    problems=_PROBLEMS,
    failure=FailureDocument,
)
def completions() -> Response:
    """`model` is a bundle's name. `budget` (in `extra_body`) says what a token may take, as `POST /v1/generate` has it."""
    query = parsed_body(CompletionRequest, generating().options.body_bytes)
    if (prompt := query.text) is None:
        raise wrong_field("prompt", None, "several given; allowed is one")
    most = query.max_tokens
    if most is None:  # nobody said it: no reason to refuse anything
        most = min(COMPLETION_TOKENS, generating().options.max_tokens)
    bundle = _model(query.model)
    admitted(bundle, query.device)
    gone = client_gone()
    text = generating().begin(bundle, query.device, prompt, query.options(most), query.budget, g.received, gone)
    top = head("cmpl", request_id(), bundle.name)
    if not query.stream:
        found = whole(text, gone)
        if found is None:
            return nobody_reads()
        choice = {"index": 0, "text": found[0], "logprobs": None, "finish_reason": FINISH[text.finish]}
        return json_answer(_said(top, "text_completion", [choice], text))

    def chunk(said: str, finish: str | None = None) -> bytes:
        choice = {"index": 0, "text": said, "logprobs": None, "finish_reason": finish}
        return event({**top, "object": "text_completion", "choices": [choice]})

    return _streamed(text, _Chunks(gone, b"", lambda one: chunk(one.text), lambda: chunk("", FINISH[text.finish])), top, query)


@blueprint.post("/chat/completions")
@describe(
    "Answer in a conversation, as OpenAI's clients ask for it",
    tag="generate",
    request=ChatRequest,
    answers={200: Answer("The answer: at once, or events", {"application/json": ChatCompletion, SSE: dict[str, Any]})},
    problems=_PROBLEMS,
    failure=FailureDocument,
)
def chat_completions() -> Response:
    """`model` is a bundle's name. `budget` (in `extra_body`) says what a token may take, as `POST /v1/generate` has it."""
    query = parsed_body(ChatRequest, generating().options.body_bytes)
    bundle = _model(query.model)
    admitted(bundle, query.device)
    generating().check_tokens(query.most, query.most_by)
    gone, messages = client_gone(), [one.message().model_dump() for one in query.messages]
    text = generating().begin(bundle, query.device, messages, query.options(query.most), query.budget, g.received, gone)
    top = head("chatcmpl", request_id(), bundle.name)
    if not query.stream:
        found = whole(text, gone)
        if found is None:
            return nobody_reads()
        message = {"role": "assistant", "content": found[0], "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": FINISH[text.finish]}
        return json_answer(_said(top, "chat.completion", [choice], text))
    chunks = _Chunks(
        gone,
        event(chat_chunk(top, {"role": "assistant", "content": ""})),
        lambda one: event(chat_chunk(top, {"content": one.text})) if one.text else b"",
        lambda: event(chat_chunk(top, {}, FINISH[text.finish])),
    )
    return _streamed(text, chunks, {**top, "object": "chat.completion.chunk"}, query)


@blueprint.get("/models")
@describe("The bundles that generate text", tag="generate", answers={200: ModelList}, failure=FailureDocument)
def models() -> Response:
    return model_answer(ModelList(data=[_listed(one) for one in state().bundles.values() if generates(one)]))


@blueprint.get("/models/<name>")
@describe(
    "A bundle that generates text",
    tag="generate",
    answers={200: Model},
    problems={404: "No such model"},
    failure=FailureDocument,
)
def model(name: str) -> Response:
    return model_answer(_listed(_model(name)))


@blueprint.errorhandler(Problem)
def problem(error: Problem) -> Response:
    return _failed(error.status, error.detail, error.more.get("errors", ()), dict(error.headers))


@blueprint.errorhandler(Overloaded)
def overloaded(error: Overloaded) -> Response:
    return _failed(503, f"refused early: {error.detail}", (), {"Retry-After": str(error.retry_after_s)})


@blueprint.errorhandler(StoreUnavailable)
def unavailable(error: StoreUnavailable) -> Response:
    return problem(store_unavailable(error))


@blueprint.errorhandler(HTTPException)
def http_error(error: HTTPException) -> Response:
    return _failed(error.code or 500, error.description or "", (), {})


@blueprint.errorhandler(Exception)
def unforeseen(error: Exception) -> Response:
    return problem(unexpected(error))


class _Chunks(NamedTuple):
    """What a stream is made of."""

    gone: Any
    begin: bytes
    of_piece: Any
    end: Any


def _streamed(text: Text, chunks: _Chunks, top: dict[str, Any], query: CompletionRequest | ChatRequest) -> Response:
    """With the numbers of tokens where they are asked for, and the word that ends every such stream."""
    failed = noted_failure()

    def end() -> bytes:
        counted = {**top, "choices": [], "usage": usage(text.usage, text.energy).model_dump()}
        if "object" not in counted:
            counted["object"] = "text_completion"
        last: bytes = chunks.end()
        return last + (event(counted) if query.wants_usage else b"") + event("[DONE]")

    def broken(error: Exception) -> bytes:
        _, document = failure(500, failed(error)["detail"])
        return event(document)

    return streamed(Events(text, chunks.gone, of_piece=chunks.of_piece, end=end, failed=broken, begin=chunks.begin))


def _said(top: dict[str, Any], kind: str, choices: list[dict[str, Any]], text: Text) -> dict[str, Any]:
    counted = usage(text.usage, text.energy).model_dump()
    return {**top, "object": kind, "choices": choices, "usage": counted, "submodel": text.selection.submodel}


def _model(name: str | None) -> Bundle:
    """A bundle that generates text; without a name the only one. Raises Problem 404."""
    known = {bundle.name: bundle for bundle in state().served.all().values() if generates(bundle)}
    if name is None and len(known) == 1:
        return next(iter(known.values()))
    if name is None or name not in known:
        raise Problem(404, f"model {name!r}: there is none; there are {', '.join(known) or 'none'}")
    return known[name]


def _listed(bundle: Bundle) -> Model:
    try:
        created = int((bundle.path / "manifest.json").stat().st_mtime)
    except OSError:  # being replaced
        created = 0
    return Model(id=bundle.name, created=created)


def _failed(status: int, detail: str, errors: Any, headers: dict[str, str]) -> Response:
    status, document = failure(status, detail, errors)
    response = Response(to_json(document), status=status, mimetype="application/json")
    response.headers.update(headers)
    return response
