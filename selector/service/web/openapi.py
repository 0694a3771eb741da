"""The OpenAPI 3.1 document, made of the pydantic models. Each `*_routes.py` says with `describe` what a path takes and answers:

    @blueprint.put("/<name>/profiles/<device>")
    @describe(
        "Store a device's profile",
        tag="profiles",
        parameters=[Parameter("device", "path", Name, "The device's name"), Parameter("If-Match", "header", str, "An ETag")],
        request=Profile,
        answers={200: Stored, 201: Answer("It is the first of this device", Stored, headers={"ETag": "Of the version"})},
        problems={404: "No such bundle", 409: "An older one than is stored", 429: "Too many requests"},
        scope="profiles:write",
    )
    def put_profile(name: str, device: str) -> Response: ...

`describe` goes below the route's decorator. It only leaves a note on the function, so a request pays nothing for it; bodies
are validated by `state.parsed_body`, from the raw bytes. A model stands for `application/json`; other kinds of content are
a mapping from media type to model, or to None for bytes: `answers={200: {"application/octet-stream": None}}`. What any path
may answer is added: 400, 408, 414, 421, 431, 503; 401 and 403 where there is a scope; 413, 415 and 422 where there is a body;
`X-Request-Id`. A page or file that is no part of the API is marked `@not_in_the_api`. A test fails for a path that has neither.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any, Literal, TypeVar

from apispec import APISpec
from flask import Flask
from pydantic import TypeAdapter
from pydantic.json_schema import JsonSchemaMode
from werkzeug.routing import Rule

from selector.service.web.schemas import ProblemDocument

View = TypeVar("View", bound=Callable[..., Any])

JSON, PROBLEM = "application/json", "application/problem+json"
ALWAYS = {
    400: "The request is malformed",
    408: "The request did not arrive in time",
    414: "The address is too long",
    421: "The service is not known under this host's name",
    431: "Too many headers, or too long ones",
    503: "Too many requests wait already, or the path says another reason; try again later",
}
WITH_A_BODY = {413: "The body is too large", 415: "The body is of another media type", 422: "The body does not fit its schema"}
WITH_A_SCOPE = {401: "No token, or an unknown one", 403: "The token lacks the scope"}
TAGS = {
    "select": "Which sub-model fits a budget",
    "predict": "Inputs are run",
    "oip": "The same by the Open Inference Protocol, version 2",
    "generate": "Text is generated",
    "bundles": "What is served",
    "files": "What a device needs of a bundle",
    "profiles": "What devices measured",
    "rings": "A new version, for a few devices first",
    "service": "Whether it is alive and ready, and what it does",
}
"""In the order in which they are shown: what most come for is first."""
_REFERENCE = "#/components/schemas/{model}"
_VARIABLE = re.compile(r"<(?:\w+(?:\(.*?\))?:)?(\w+)>")


@dataclass(frozen=True)
class Parameter:
    """Of a path, query or header; `type` is anything that pydantic has a JSON schema for. A path's are always required."""

    name: str
    place: Literal["path", "query", "header"]
    type: Any
    description: str
    required: bool = False


@dataclass(frozen=True)
class Answer:
    """`content`: a model for JSON, a mapping from media type to model (None: bytes), or None for no body. `headers`: what
    each header that the answer always has says."""

    description: str
    content: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Operation:
    """What `describe` was told."""

    summary: str
    tag: str
    answers: Mapping[int, Any]
    request: Any
    parameters: Sequence[Parameter]
    problems: Mapping[int, str]
    scope: str | None
    description: str
    failure: Any = None


def describe(
    summary: str,
    *,
    tag: str,
    answers: Mapping[int, Any],
    request: Any = None,
    parameters: Sequence[Parameter] = (),
    problems: Mapping[int, str] | None = None,
    scope: str | None = None,
    failure: Any = None,
) -> Callable[[View], View]:
    """What a view takes and answers (see the top of this file). `answers`: by status, an `Answer` or only its content.
    `problems`: by status, when it is answered. `scope`: what a bearer token must be allowed. `failure`: the model of the path's
    errors, where they are no problem documents. The view's docstring becomes the description."""

    def note(view: View) -> View:
        description = " ".join((view.__doc__ or "").split())
        operation = Operation(summary, tag, answers, request, parameters, problems or {}, scope, description, failure)
        view.__operation__ = operation  # type: ignore[attr-defined]
        return view

    return note


def not_in_the_api(view: View) -> View:
    """For a page or file that is for browsers."""
    view.__operation__ = None  # type: ignore[attr-defined]
    return view


def undescribed(app: Flask) -> list[str]:
    """The paths that have neither `describe` nor `not_in_the_api`."""
    return [rule.rule for rule in app.url_map.iter_rules() if not hasattr(app.view_functions[rule.endpoint], "__operation__")]


def document(app: Flask) -> dict[str, Any]:
    """The OpenAPI document of all described paths of an application."""
    spec = APISpec(
        title="sortednet",
        version=version("sortednet"),
        openapi_version="3.1.0",
        tags=[{"name": name, "description": said} for name, said in TAGS.items()],
        info={"description": "Which sub-model fits a budget; what a device needs of a bundle; what devices measured."},
    )
    spec.components.security_scheme("token", {"type": "http", "scheme": "bearer"})
    order = list(TAGS)
    described = sorted(_described(app), key=lambda one: (order.index(one[1].tag), one[0].rule))
    schemas = _Schemas([operation for _, operation in described])
    for name, schema in sorted(schemas.components.items()):
        spec.components.schema(name, schema)
    for rule, operation in described:
        for method in sorted((rule.methods or set()) - {"HEAD", "OPTIONS"}):
            spec.path(path=_VARIABLE.sub(r"{\1}", rule.rule), operations={method.lower(): _operation(rule, operation, schemas)})
    found: dict[str, Any] = spec.to_dict()
    return found


def _described(app: Flask) -> Iterator[tuple[Rule, Operation]]:
    for rule in app.url_map.iter_rules():
        operation = getattr(app.view_functions[rule.endpoint], "__operation__", None)
        if operation is not None:
            yield rule, operation


def _operation(rule: Rule, operation: Operation, schemas: _Schemas) -> dict[str, Any]:
    answers = {status: _answer(said) for status, said in operation.answers.items()}
    added = ALWAYS | (WITH_A_BODY if operation.request else {}) | (WITH_A_SCOPE if operation.scope else {})
    for status, description in sorted({**added, **operation.problems}.items()):
        content = (
            {PROBLEM: ProblemDocument} if operation.failure is None else {JSON: operation.failure, PROBLEM: ProblemDocument}
        )
        answers[status] = Answer(description, content)
    found: dict[str, Any] = {
        "summary": operation.summary,
        "operationId": rule.endpoint.replace(".", "_"),
        "tags": [operation.tag],
        "parameters": [_parameter(one, schemas) for one in _parameters(rule, operation)],
        "responses": {str(status): _response(answer, schemas) for status, answer in answers.items()},
    }
    if operation.description:
        found["description"] = operation.description
    if operation.request is not None:
        found["requestBody"] = {"required": True, "content": _content(operation.request, "validation", schemas)}
    if operation.scope:
        found["security"] = [{"token": [operation.scope]}]
    return found


def _parameters(rule: Rule, operation: Operation) -> list[Parameter]:
    """Those declared; a variable of the path that is not is a string."""
    declared = {parameter.name for parameter in operation.parameters if parameter.place == "path"}
    rest = [Parameter(name, "path", str, name) for name in sorted(rule.arguments - declared)]
    return [*rest, *operation.parameters]


def _parameter(parameter: Parameter, schemas: _Schemas) -> dict[str, Any]:
    return {
        "name": parameter.name,
        "in": parameter.place,
        "description": parameter.description,
        "required": parameter.required or parameter.place == "path",
        "schema": schemas.of(parameter.type, "validation"),
    }


def _answer(said: Any) -> Answer:
    return said if isinstance(said, Answer) else Answer("Done", said)


def _response(answer: Answer, schemas: _Schemas) -> dict[str, Any]:
    headers = {"X-Request-Id": "The request's own, or a new one", **answer.headers}
    found: dict[str, Any] = {
        "description": answer.description,
        "headers": {
            name: {"description": said, "required": True, "schema": {"type": "string"}} for name, said in headers.items()
        },
    }
    if answer.content is not None:
        found["content"] = _content(answer.content, "serialization", schemas)
    return found


def _content(content: Any, mode: JsonSchemaMode, schemas: _Schemas) -> dict[str, Any]:
    return {media: {"schema": schemas.of(one, mode)} if one is not None else {} for media, one in _by_media(content).items()}


def _by_media(content: Any) -> Mapping[str, Any]:
    return content if isinstance(content, Mapping) else {JSON: content}


class _Schemas:
    """JSON schemas of all that the operations speak of, with shared parts as components."""

    def __init__(self, operations: Sequence[Operation]) -> None:
        wanted: dict[tuple[int, JsonSchemaMode], tuple[Any, JsonSchemaMode]] = {}
        for operation in operations:
            contents = [(operation.request, "validation")] if operation.request is not None else []
            contents += [(_answer(said).content, "serialization") for said in operation.answers.values()]
            contents += [(operation.failure, "serialization")] if operation.failure is not None else []
            contents += [({"": parameter.type}, "validation") for parameter in operation.parameters]
            for content, mode in contents:
                for one in _by_media(content).values():
                    wanted[id(one), mode] = (one, mode)  # type: ignore[index,assignment]
        for one, mode in ((str, "validation"), (ProblemDocument, "serialization")):
            wanted[id(one), mode] = (one, mode)  # type: ignore[index,assignment]
        inputs = [(key, mode, TypeAdapter(one)) for (key, mode), (one, _) in wanted.items() if one is not None]
        self._schemas, definitions = TypeAdapter.json_schemas(inputs, ref_template=_REFERENCE)
        self.components: dict[str, Any] = definitions.get("$defs", {})

    def of(self, one: Any, mode: JsonSchemaMode) -> dict[str, Any]:
        return dict(self._schemas[id(one), mode])
