"""A client of `POST /v1/predict` for the tests: what is sent, what comes back."""

from __future__ import annotations

import http.client
import io
import json
import time
from collections.abc import Iterator
from typing import Any, NamedTuple
from urllib.parse import quote, urlsplit

import numpy as np
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from exporter.bundle import Bundle
from selector.service import PredictOptions, create_app
from tests.conftest import DEVICE
from tests.helpers.server import Server

NPY, NPZ, JSON = "application/x-npy", "application/x-npz", "application/json"


class Reply(NamedTuple):
    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def document(self) -> Any:
        return json.loads(self.body)


def send(server: Server, path: str, body: bytes | Iterator[bytes], **headers: str) -> Reply:
    """`body`: an iterator is sent in chunks. `headers`: with `_` for `-`."""
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=60)
    try:
        connection.request("POST", path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        response = connection.getresponse()
        return Reply(response.status, response.headers, response.read())
    finally:
        connection.close()


def slowly(body: bytes, seconds: float) -> Iterator[bytes]:
    """A body whose second half comes so much later."""
    yield body[: len(body) // 2]
    time.sleep(seconds)
    yield body[len(body) // 2 :]


def send_json(server: Server, document: Any, **headers: str) -> Reply:
    return send(server, "/v1/predict", json.dumps(document).encode(), Content_Type=JSON, **headers)


def npy_of(array: np.ndarray[Any, Any], **options: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, **options)
    return buffer.getvalue()


def budget_path(budget: dict[str, Any]) -> str:
    return f"/v1/predict?budget={quote(json.dumps(budget))}"


def input_name(bundle: Bundle) -> str:
    return bundle.manifest.inputs[0].name


def refused(reply: Reply, status: int) -> dict[str, Any]:
    """The problem's only error, or the problem where it lists none."""
    assert (reply.status, reply.headers.get_content_type()) == (status, "application/problem+json"), reply.body[:500]
    document = reply.document
    assert document["status"] == status
    assert document["detail"]
    errors = document.get("errors", [document])
    assert len(errors) == 1
    return dict(errors[0])


def predicted(bundle: Bundle, client: FlaskClient | None = None) -> TestResponse:
    client = client or create_app([bundle], predict=PredictOptions()).test_client()
    spec = bundle.manifest.inputs[0]
    inputs = {spec.name: np.zeros([1, *spec.shape[1:]], np.float32).tolist()}
    return client.post("/v1/predict", json={"device": DEVICE, "inputs": inputs})
