"""`POST /v1/predict` with texts, in JSON and as `text/plain`: what comes back is what `Runtime.run_text` says."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from exporter.bundle import Bundle
from selector.service import PredictOptions, create_app
from selector.service.fleet.store import Store
from tests.helpers import text_bundles
from tests.helpers.predict_client import NPZ, refused, send, send_json
from tests.helpers.runtimes import quiet_runtime
from tests.helpers.server import serving
from tests.helpers.text_bundles import LABELS, MAX_TOKENS

LONG = "the rivers and stars of the wider bread . " * 5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundles")
    text_bundles.sentences(path / "sentences")
    text_bundles.pairs(path / "pairs")
    text_bundles.tags(path / "tags")
    return path


@pytest.fixture
def client(folder: Path, bundle_path: Path, tmp_path: Path) -> FlaskClient:
    bundles = [Bundle(path) for path in (folder / "sentences", folder / "pairs", folder / "tags", bundle_path)]
    options = PredictOptions(text_characters=1000)
    return create_app(bundles, Store(f"sqlite:///{tmp_path / 'store.db'}"), predict=options).test_client()


def ask(client: FlaskClient, bundle: str = "sentences", **body: Any) -> TestResponse:
    return client.post("/v1/predict", json={"bundle": bundle, **body})


def wrong(response: TestResponse, status: int = 422) -> dict[str, Any]:
    """The only error of the problem document, or the document."""
    assert response.status_code == status, response.text
    (error,) = response.get_json().get("errors", [response.get_json()])
    return dict(error)


def test_one_text_and_several(client: FlaskClient, folder: Path) -> None:
    texts = ["the rivers", LONG, "bread and stars"]
    found = ask(client, text=texts).get_json()
    with quiet_runtime(folder / "sentences") as runtime:
        wanted = runtime.run_text(texts)
    np.testing.assert_allclose(found["outputs"]["logits"], wanted.outputs["logits"], rtol=1e-4, atol=1e-5)
    assert [best[0]["label"] for best in found["answers"]] == wanted.labels
    assert (found["tokens"], found["truncated"]) == ([5, MAX_TOKENS, 6], 1)
    assert "words" not in found
    one = ask(client, text="the rivers").get_json()
    assert one["tokens"] == [5]
    np.testing.assert_allclose(one["outputs"]["logits"], found["outputs"]["logits"][:1], rtol=1e-4, atol=1e-5)


def test_pairs_and_tagged_words(client: FlaskClient) -> None:
    pair = ask(client, "pairs", text=["the rivers"], text_pair=["stars"]).get_json()
    assert (pair["tokens"], ask(client, "pairs", text="the rivers", text_pair="stars").get_json()["tokens"]) == ([8], [8])
    (words,) = ask(client, "tags", text="the rivers").get_json()["words"]
    assert [(word["word"], word["start"], word["end"]) for word in words] == [("the", 0, 3), ("rivers", 4, 10)]
    assert {word["label"] for word in words} <= set(text_bundles.TAGS)


def test_a_plain_body_is_one_text(client: FlaskClient) -> None:
    wanted = ask(client, text="Größe der rivers").get_json()
    found = client.post(
        "/v1/predict?bundle=sentences", data="Größe der rivers".encode(), content_type="text/plain; charset=UTF-8"
    )
    assert found.mimetype == "application/json"
    assert found.get_json()["outputs"] == wanted["outputs"]
    packed = client.post("/v1/predict?bundle=sentences", data=LONG, headers={"Content-Type": "text/plain", "Accept": NPZ})
    assert packed.headers["Sortednet-Truncated"] == "1"
    assert np.load(io.BytesIO(packed.data))["logits"].shape == (1, len(LABELS))


@pytest.mark.parametrize(
    ("body", "field", "message"),
    [
        ({}, "inputs", "Field required: inputs, or text"),
        ({"text": "a", "inputs": {}}, "text", "stands beside inputs"),
        ({"text_pair": "a"}, "inputs", "Field required: inputs, or text"),
        ({"text": ["a", "b"], "text_pair": "c"}, "text_pair", "has 1 texts; allowed is one for each of 2"),
        ({"text": "a", "text_pair": "b"}, "text", "text[0]: a pair; this bundle takes single texts"),
        ({"text": "a", "bundle": "pairs"}, "text", "text[0]: one text; this bundle takes pairs"),
        ({"text": "a", "bundle": "digits"}, "text", "this bundle does not say how one becomes its input 'input'"),
        ({"text": []}, "text", "0 texts; allowed are 1 to 64 per request"),
        ({"text": ["a"] * 65}, "text", "65 texts; allowed are 1 to 64 per request"),
        ({"text": ["a" * 500, "b" * 501]}, "text", "1001 characters; allowed are 1000 per request"),
    ],
)
def test_what_cannot_be_run_names_its_field(body: dict[str, Any], field: str, message: str, client: FlaskClient) -> None:
    error = wrong(ask(client, **body))
    assert error["field"] == field
    assert message in error["message"]


def test_bytes_that_are_no_text(client: FlaskClient) -> None:
    for text in (b'"a\\ud800b"', b'"a\xff"'):
        body = b'{"bundle": "sentences", "text": %s}' % text
        response = client.post("/v1/predict", data=body, content_type="application/json")
        assert "column" in wrong(response)["message"]  # the position
    plain = client.post("/v1/predict?bundle=sentences", data=b"ab\xffc", content_type="text/plain")
    assert "byte 2 of the body is no UTF-8" in wrong(plain)["message"]
    latin = client.post("/v1/predict?bundle=sentences", data=b"abc", content_type="text/plain; charset=latin-1")
    assert "charset 'latin-1'; allowed is utf-8" in wrong(latin, 415)["detail"]


@pytest.mark.parametrize(("text", "fields"), [(3, ["text", "text"]), (["a", None], ["text", "text.1"])])
def test_what_is_no_text_is_named_as_it_was_given(text: Any, fields: list[str], client: FlaskClient) -> None:
    assert [error["field"] for error in ask(client, text=text).json["errors"]] == fields  # type: ignore[index]


def test_a_service_without_the_library_says_so(client: FlaskClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    assert "it has no tokenizers, which the extra `text` brings" in wrong(ask(client, text="bread"), 501)["detail"]


def test_a_deadline_and_a_battery_are_heeded_for_texts_too(client: FlaskClient, folder: Path, tmp_path: Path) -> None:
    import shutil

    from tests.helpers.figures import written_down

    path = written_down(Path(shutil.copytree(folder / "sentences", tmp_path / "measured")))
    store = Store(f"sqlite:///{tmp_path / 'other.db'}")
    measured = create_app([Bundle(path)], store, predict=PredictOptions()).test_client()
    body = {"device": "test-device", "text": ["bread", LONG], "battery": {"percent": 5, "discharging": True}}
    found = measured.post("/v1/predict", json={**body, "budget": {"latency_ms": 60_000}}).get_json()
    assert found["selection"]["feasible"]
    assert (found["tokens"], len(found["answers"])) == ([3, MAX_TOKENS], 2)


@pytest.fixture(scope="module")
def url(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with serving(tmp_path_factory.mktemp("predict") / "log", folder / "sentences") as found:
        yield found


def test_a_real_server_reads_texts(url: Any) -> None:
    reply = send_json(url, {"text": ["the rivers", "bread"]})
    assert (reply.status, reply.document["tokens"]) == (200, [5, 3]), reply.body
    plain = send(url, "/v1/predict", b"the rivers", Content_Type="text/plain")
    assert json.loads(plain.body)["answers"][0] == reply.document["answers"][0]


def test_a_real_server_refuses_what_is_no_text_and_goes_on(url: Any) -> None:
    """Over the wire nothing has been decoded before."""
    for text in (rb'"a\ud800b"', rb'"\udc00"', b'"a\xff"', b'"\xed\xa0\x80"', rb'["bread", "a\ud83d"]'):
        reply = send(url, "/v1/predict", b'{"text": %s}' % text, Content_Type="application/json")
        assert "column" in refused(reply, 422)["message"], text
    for body, place in ((b"ab\xffc", 2), (b"\xed\xa0\x80", 0), ("bread".encode("utf-16"), 0), ("Größe".encode()[:3], 2)):
        reply = send(url, "/v1/predict", body, Content_Type="text/plain")
        assert f"byte {place} of the body is no UTF-8" in refused(reply, 422)["message"], body
    whole = send(url, "/v1/predict", "the 😀 rivers".encode(), Content_Type="text/plain").document
    parts = send(url, "/v1/predict", iter([b"the \xf0\x9f", b"\x98\x80 rivers"]), Content_Type="text/plain").document
    escaped = send(url, "/v1/predict", rb'{"text": "the \ud83d\ude00 rivers"}', Content_Type="application/json").document
    assert whole["tokens"] == [6]
    assert whole["outputs"] == parts["outputs"] == escaped["outputs"]
    assert send(url, "/v1/predict", b"", Content_Type="text/plain").document["tokens"] == [2]  # what an empty text has
