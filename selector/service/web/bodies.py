"""Bodies of requests, read within limits and validated; bodies of answers, compressed and under conditions."""

from __future__ import annotations

import gzip
from collections.abc import Collection, Mapping
from typing import Any, Literal, TypeVar

from flask import Response, request
from pydantic import BaseModel, ValidationError
from pydantic_core import to_json
from werkzeug.exceptions import BadRequest, HTTPException, RequestEntityTooLarge, UnsupportedMediaType

from selector.service.web.problems import Problem, field_errors

Model = TypeVar("Model", bound=BaseModel)

COMPRESSED_FROM = 1024
"""Bytes. What is smaller goes in one packet anyway."""

_LEVEL = 4  # half a millisecond for a profile of 160 sub-models, 74 kB, of which 10 are left; level 6 takes twice as long for 9
_SUFFIX = "-gzip"


def body(max_bytes: int, media_types: Collection[str] = ("application/json",)) -> bytes:
    """The request's body. Raises UnsupportedMediaType, RequestEntityTooLarge, also where no length was announced, and
    BadRequest where the body is not whole."""
    if request.mimetype not in media_types or "HTTP_CONTENT_ENCODING" in request.environ:
        given = f"{request.mimetype!r} {request.headers.get('Content-Encoding', '')}".rstrip()
        raise UnsupportedMediaType(f"the body is {given}; allowed is {' or '.join(media_types)}, not compressed")
    if (request.content_length or 0) > max_bytes:  # before any of it has come
        raise RequestEntityTooLarge(f"{request.content_length} bytes; allowed are {max_bytes}")
    request.max_content_length = max_bytes + 1  # a body sent in chunks is cut there
    try:
        found = request.get_data(cache=False)
    except HTTPException:
        raise
    except Exception as error:  # of the server, which has its own for chunks that are none
        raise BadRequest(f"the body cannot be read: {error}") from None
    if len(found) > max_bytes:
        raise RequestEntityTooLarge(f"allowed are {max_bytes} bytes")
    if len(found) < (request.content_length or 0):
        raise BadRequest(f"the body ends after {len(found)} of {request.content_length} bytes")
    return found


def parsed_body(model: type[Model], max_bytes: int) -> Model:
    """The JSON body as a model (see `validated`). Raises what `body` and `validated` raise."""
    return validated(model, body(max_bytes))


def validated(model: type[Model], document: bytes) -> Model:
    """Validates JSON strictly, from its bytes. Raises Problem 422 naming the fields."""
    try:
        return model.model_validate_json(document, strict=True)
    except ValidationError as error:
        raise Problem(422, "the body does not fit its schema", errors=field_errors(error, model)) from None


def json_answer(document: Mapping[str, Any]) -> Response:
    return Response(to_json(document), mimetype="application/json")


def model_answer(document: BaseModel) -> Response:
    return Response(document.model_dump_json(), mimetype="application/json")


def compressed(answer: Response) -> Response:
    """The answer with gzip, where the client takes that and there is something to gain. For documents that are asked for once
    or by people: what answers in microseconds is not to wait for it.

    The bytes are others, so the ETag says so (RFC 9110, section 8.8.3.3); `plain_etag` takes that off again.
    """
    content = answer.get_data()
    if len(content) < COMPRESSED_FROM:
        return answer
    answer.vary.add("Accept-Encoding")
    if request.accept_encodings["gzip"] > 0:
        answer.set_data(gzip.compress(content, _LEVEL, mtime=0))
        answer.headers["Content-Encoding"] = "gzip"
        etag, _ = answer.get_etag()
        if etag is not None:
            answer.set_etag(etag + _SUFFIX)
    return answer


def plain_etag(etag: str) -> str:
    """Of the same content when it is not compressed."""
    return etag.removesuffix(_SUFFIX)


def conditional(answer: Response) -> Response:
    """The answer, which has a strong ETag, or 304 where the client has it. Raises Problem 412 where it wants another."""
    etag, _ = answer.get_etag()
    assert etag is not None
    unwanted = unwanted_because(etag)
    if unwanted == 412:
        raise Problem(412, f'this has the ETag "{etag}"')
    if unwanted == 304:
        answer.status_code = 304  # the body and what describes it are left out then
    return answer


def unwanted_because(etag: str) -> Literal[304, 412] | None:
    """By the conditions of a GET, in their order (RFC 9110, section 13.2.2): 412 where `If-Match` does not name this strong
    ETag, 304 where `If-None-Match` does, None where the content is wanted."""
    if "If-Match" in request.headers and not request.if_match.contains(etag):
        return 412
    if "If-None-Match" in request.headers and request.if_none_match.contains_weak(etag):
        return 304
    return None
