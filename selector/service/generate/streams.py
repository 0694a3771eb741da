"""Server-sent events of a text that is being generated: until it ends, or the client is gone."""

from __future__ import annotations

import select
import socket
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Self

from flask import Response, current_app, request
from pydantic_core import to_json

from selector.service.web.access import LOGGED, request_id
from selector.service.web.problems import problem_document

if TYPE_CHECKING:
    from selector.run.generate import Piece
    from selector.service.generate.text import Text

SSE = "text/event-stream"
CLIENT_GONE = 499
"""The status of an answer that nobody reads, as nginx has it in its log."""


def client_gone() -> Callable[[], bool]:
    """Whether the present request's client has closed its connection, to be asked between tokens, when there is no request any
    more. Under a server that does not hand the socket on it is always there."""
    sock: socket.socket | None = request.environ.get("gunicorn.socket")
    if sock is None or not hasattr(select, "poll"):
        return lambda: False
    poll = select.poll()
    poll.register(sock, select.POLLIN)

    def gone() -> bool:
        try:
            ready = poll.poll(0)
            return bool(ready) and (not ready[0][1] & select.POLLIN or sock.recv(1, socket.MSG_PEEK) == b"")
        except OSError:
            return True

    return gone


def event(document: Mapping[str, Any] | str, name: str = "") -> bytes:
    """One event: JSON, or a word as it is."""
    data = document.encode() if isinstance(document, str) else to_json(document)
    return (f"event: {name}\n".encode() if name else b"") + b"data: " + data + b"\n\n"


class Events:
    """The body of a streamed answer: what `begin`, `of_piece` and `end` make of a text. Whatever ends it, the text's slot is
    free within one token: its end, an error, a client that is gone, a server that stops."""

    def __init__(
        self,
        text: Text,
        gone: Callable[[], bool],
        *,
        of_piece: Callable[[Piece], bytes],
        end: Callable[[], bytes],
        failed: Callable[[Exception], bytes],
        begin: bytes = b"",
    ) -> None:
        self._text = text
        self._made = self._events(gone, begin, of_piece, end, failed)

    def _events(
        self,
        gone: Callable[[], bool],
        begin: bytes,
        of_piece: Callable[[Piece], bytes],
        end: Callable[[], bytes],
        failed: Callable[[Exception], bytes],
    ) -> Iterator[bytes]:
        if begin:
            yield begin
        try:
            for piece in self._text:
                yield of_piece(piece)
                if gone():
                    self._text.gone()
                    return
        except GeneratorExit:
            raise
        except Exception as error:  # the status is out already
            yield failed(error)
            return
        self._text.close()
        yield end()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> bytes:
        return next(self._made)

    def close(self) -> None:
        """Also of a stream that nobody has begun to read."""
        self._made.close()  # type: ignore[attr-defined]
        self._text.close()


def streamed(events: Events) -> Response:
    """The answer, which no proxy should gather before it hands it on."""
    response = Response(events, mimetype=SSE)
    response.headers["Cache-Control"] = "no-store"
    response.headers["X-Accel-Buffering"] = "no"
    return response


def noted_failure() -> Callable[[Exception], dict[str, Any]]:
    """For a stream that fails in its middle: notes the error in the log and makes a problem document of it. To be asked while
    there is a request."""
    app, identifier = current_app._get_current_object(), request_id()  # type: ignore[attr-defined]
    about = dict(zip(LOGGED, (identifier, request.method, request.url_rule and request.url_rule.rule), strict=True))

    def failed(error: Exception) -> dict[str, Any]:
        app.logger.error("a text ended in its middle: %s", error, exc_info=error, extra=about)
        detail = "the text cannot go on; the service's log says more under this request_id"
        return problem_document(500, detail, {"request_id": identifier})

    return failed
