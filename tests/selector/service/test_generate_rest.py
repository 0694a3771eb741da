"""`POST /v1/generate`: text by the size that a budget affords, as events or at once; what is wrong is refused by name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from exporter.bundle import Bundle
from selector.service import GenerateOptions, create_app
from selector.service.fleet.store import Store
from selector.service.generate.generating import Generating
from tests.helpers.decoding import per_token
from tests.helpers.generators import WEIGHTS, always_guess, tiny, tokenizer, write_bundle
from tests.helpers.texts_served import events

PROMPT = "What a fine day"
LATER_MS = 3_600_000.0


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_bundle(tmp_path_factory.mktemp("talker") / "talker")


@pytest.fixture(scope="module")
def app(bundle: Bundle) -> Iterator[Flask]:
    made = create_app([bundle], generate=GenerateOptions(cores=1, waiting=0, max_tokens=64))
    yield made
    for kept in generating(made).opened(bundle):
        kept.generator.close()


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    return app.test_client()


def generating(app: Flask) -> Generating:
    found: Generating = app.extensions["sortednet.generating"]
    return found


def post(client: FlaskClient, **body: Any) -> Any:
    answer = client.post("/v1/generate", json={"stream": False, **body})
    assert answer.status_code == 200, answer.text
    return answer.json


def refused(client: FlaskClient, status: int = 422, /, **body: Any) -> Any:
    answer = client.post("/v1/generate", json={"prompt": "x", **body})
    assert answer.status_code == status, answer.text
    assert answer.mimetype == "application/problem+json"
    return answer.json


def test_the_text_is_the_best_sizes_own_and_streams_as_it_is(client: FlaskClient) -> None:
    ids = tokenizer().encode(PROMPT).ids
    expected = tiny("full").greedy(ids, 12)
    whole = post(client, prompt=PROMPT, options={"max_tokens": 12})
    assert whole["tokens"] == expected
    assert whole["selection"]["submodel"] == "full"
    assert whole["energy_mj"] > 0
    assert whole["energy_source"] == "measured"
    assert whole["usage"] == {"prompt_tokens": len(ids), "completion_tokens": len(expected), "reused_tokens": 0}
    answer = client.post("/v1/generate", json={"prompt": ids, "options": {"max_tokens": 12}})
    assert answer.mimetype == "text/event-stream"
    *pieces, last = events(answer.data)
    assert [token for piece in pieces for token in piece.document["tokens"]] == expected
    assert "".join(piece.document["text"] for piece in pieces) == whole["text"]
    assert {piece.name for piece in pieces} == {""}
    assert last.name == "end"
    assert last.document["finish"] == whole["finish"]
    assert last.document["usage"]["reused_tokens"] > 0  # the prompt was known from the text before
    assert set(last.document) | {"text", "tokens"} == set(whole)


def test_a_budget_per_token_chooses_the_size(bundle: Bundle) -> None:
    """By the profile: a generator that has made no further tokens yet has learnt nothing else."""
    made = create_app([bundle], generate=GenerateOptions(cores=1))
    client = made.test_client()
    limit = 1.1 * per_token(WEIGHTS["middle"], len(PROMPT) + 8)
    found = post(client, prompt=PROMPT, options={"max_tokens": 1}, budget={"token_ms": limit})
    assert found["selection"]["submodel"] == "middle"
    assert "latency per token" in found["selection"]["reason"]
    late = post(client, prompt=PROMPT, options={"max_tokens": 1}, budget={"token_ms": 1e-3})
    assert late["selection"]["feasible"] is False  # the nearest, and it says so
    best = post(client, prompt=PROMPT, options={"max_tokens": 1}, budget={"min_quality": 1.0, "first_token_ms": LATER_MS})
    assert (best["selection"]["submodel"], best["selection"]["feasible"]) == ("full", False)
    generating(made).opened(bundle)[0].generator.close()


def test_a_conversation_goes_by_the_template(client: FlaskClient) -> None:
    messages = [{"role": "user", "content": "Hello"}]
    ids = tokenizer().encode("<|start|>user\nHello<|end|>\n<|start|>assistant\n").ids
    found = post(client, messages=messages, options={"max_tokens": 5})
    assert found["tokens"] == tiny("full").greedy(ids, 5)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": "x" * 600}, "prompt"),
        ({"prompt": None, "messages": [{"role": "user", "content": "x" * 600}]}, "messages"),
        ({"prompt": [1, 5000]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": None}, ""),
        ({"messages": [{"role": "user", "content": "x"}]}, ""),
        ({"options": {"max_tokens": 0}}, "options.max_tokens"),
        ({"options": {"max_tokens": 65}}, "options.max_tokens"),
        ({"options": {"temperature": float("nan")}}, "options.temperature"),
        ({"options": {"top_p": 0}}, "options.top_p"),
        ({"options": {"min_p": 2}}, "options.min_p"),
        ({"options": {"stop": [""]}}, "options.stop"),
        ({"options": {"seed": 2**70}}, "options.seed"),
        ({"options": {"best": 1}}, "options.best"),
        ({"budget": {"latency_ms": 5}}, "budget.latency_ms"),
        ({"budget": {"context": 5}}, "budget.context"),
        ({"budget": {"token_ms": 0}}, "budget.token_ms"),
        ({"budget": {"token_ms": 5, "latency_ms": 5}}, "budget"),
        ({"budget": {"min_accuracy": 0.5}}, "budget.min_accuracy"),
    ],
)
def test_what_is_wrong_is_refused_by_name(client: FlaskClient, body: dict[str, Any], field: str) -> None:
    errors = refused(client, **body)["errors"]
    assert any(one["field"] == field or one["field"].startswith(f"{field}.") for one in errors), errors


@pytest.mark.parametrize(
    ("body", "field", "place"),
    [
        ({"max_tokens": 5}, "max_tokens", "options"),
        ({"temperature": 0.5}, "temperature", "options"),
        ({"token_ms": 5.0}, "token_ms", "budget"),
        ({"options": {"first_token_ms": 5.0}}, "options.first_token_ms", "budget"),
        ({"budget": {"stream": False}}, "budget.stream", "the document itself"),
        ({"best_of": 5}, "best_of", None),
    ],
)
def test_what_stands_elsewhere_is_told_its_place(client: FlaskClient, body: dict[str, Any], field: str, place: str) -> None:
    (error,) = refused(client, **body)["errors"]
    assert error["field"] == field
    assert error["message"].startswith(
        f"belongs in {place}" if place else "there is no such field; allowed are bundle, device, prompt"
    )


@pytest.mark.parametrize("body", [b'{"prompt": "\xff"}', b'{"prompt": "\\ud800"}', b'{"prompt": "x"', b"[]"])
def test_what_is_no_text_is_refused(client: FlaskClient, body: bytes) -> None:
    answer = client.post("/v1/generate", data=body, content_type="application/json")
    assert answer.status_code == 422, answer.text


def test_unknown_bundles_and_devices(client: FlaskClient) -> None:
    refused(client, 404, bundle="nobody")
    refused(client, 404, device="nobody")


def test_a_bundle_that_generates_none_says_so(bundle_path: Path) -> None:
    client = create_app([Bundle(bundle_path)]).test_client()
    assert "generates no text" in refused(client)["detail"]
    assert client.get("/v1/models").json == {"object": "list", "data": []}


def test_who_finds_no_place_is_told_when_to_come_again(app: Flask, client: FlaskClient) -> None:
    with generating(app).gate.entered(256, 1, float("inf")):
        answer = client.post("/v1/generate", json={"prompt": "x"})
        assert answer.status_code == 503
        assert int(answer.headers["Retry-After"]) >= 1
        assert answer.json["reason"] == "queue_full"  # type: ignore[index]
        assert client.get("/metrics").text.count('sortednet_generate_refused_total{bundle="talker",reason="queue_full"} 1.0')
    post(client, prompt="x", options={"max_tokens": 1})


def test_whatever_ends_a_stream_its_place_is_free(app: Flask, client: FlaskClient) -> None:
    """Also one that nobody has begun to read."""
    for read in (0, 3):
        answer = client.post("/v1/generate", json={"prompt": PROMPT, "options": {"ignore_eos": True}}, buffered=False)
        assert generating(app).gate.running == 1
        stream = iter(answer.response)
        for _ in range(read):
            next(stream)
        answer.close()
        assert generating(app).gate.running == 0
    assert 'finish="gone"} 2.0' in client.get("/metrics").text


def test_guessed_tokens_are_told_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    always_guess(monkeypatch)
    bundle = write_bundle(tmp_path / "guessing", verifies=["full"], eos=())
    made = create_app([bundle], generate=GenerateOptions(cores=1, waiting=0, max_tokens=64))
    client, asked = made.test_client(), {"prompt": "abc abc abc ", "budget": {"min_quality": 0.4}}
    try:
        plain = post(client, **asked, options={"max_tokens": 60, "speculative": "off"})
        found = post(client, **asked, options={"max_tokens": 60})
        assert found["tokens"] == plain["tokens"]
        assert plain["guesses"]["drafted"] == 0
        guesses = found["guesses"]
        assert 0 < guesses["accepted"] < guesses["drafted"]
        lines = client.get("/metrics").text.splitlines()
        for came, count in (("yes", guesses["accepted"]), ("no", guesses["drafted"] - guesses["accepted"])):
            assert f'sortednet_guessed_tokens_total{{bundle="guessing",came="{came}"}} {float(count)}' in lines
        for wrong in ({"speculative": "exit"}, {"speculative": "tree"}, {"early_exit": 0.5}):
            answer = client.post("/v1/generate", json={**asked, "options": wrong})
            assert answer.status_code == 422
            assert answer.json["errors"][0]["field"] == f"options.{next(iter(wrong))}"  # type: ignore[index]
    finally:
        for kept in generating(made).opened(bundle):
            kept.generator.close()


def test_metrics_count_tokens(client: FlaskClient) -> None:
    def total() -> float:
        lines = client.get("/metrics").text.splitlines()
        (line,) = (one for one in lines if one.startswith('sortednet_generated_tokens_total{bundle="talker"}'))
        return float(line.rpartition(" ")[2])

    post(client, prompt="x", options={"max_tokens": 1})
    before = total()
    post(client, prompt=PROMPT, options={"max_tokens": 9, "ignore_eos": True})
    assert total() == before + 9
    text = client.get("/metrics").text
    assert 'sortednet_generate_tokens_per_second{bundle="talker"}' in text
    assert 'sortednet_chosen_submodels_total{bundle="talker",path="generate",submodel="full"}' in text
    assert "sortednet_generate_running 0.0" in text


def test_with_keys_a_token_is_needed_and_its_texts_are_counted(bundle: Bundle, tmp_path: Path) -> None:
    with Store(f"sqlite:///{tmp_path / 'fleet.db'}") as store:
        options = GenerateOptions(cores=1, keys=True, rate="2 per hour")
        client = create_app([bundle], store, generate=options).test_client()
        _, right = store.tokens.create("talkers", ["generate"], bundle="talk*")
        _, other = store.tokens.create("fleet")
        _, elsewhere = store.tokens.create("others", ["generate"], bundle="else*")
        body = {"prompt": "x", "stream": False, "options": {"max_tokens": 1}}
        for key, status in ((None, 401), ("snt_none", 401), (other, 403), (elsewhere, 403), (right, 200), (right, 200)):
            headers = {} if key is None else {"Authorization": f"Bearer {key}"}
            assert client.post("/v1/generate", json=body, headers=headers).status_code == status
        for path in ("/v1/generate", "/v1/completions"):
            answer = client.post(path, json={"prompt": "x"}, headers={"Authorization": f"Bearer {right}"})
            assert answer.status_code == 429
            assert int(answer.headers["Retry-After"]) > 1


def test_no_more_than_the_memory_is_used(bundle: Bundle) -> None:
    """By the profile the two smallest take 10 and 20 MB, the next one 35."""
    made = create_app([bundle], generate=GenerateOptions(cores=1, memory_mb=30.0))
    found = post(made.test_client(), prompt=PROMPT, options={"max_tokens": 2})
    assert found["selection"]["submodel"] == "shallow"
    (kept,) = generating(made).opened(bundle)
    assert kept.generator.cache_used_mb + (kept.generator.runtime.pool.memory_used_mb or 0) <= 30.0
    kept.generator.close()


def test_the_document_of_the_api_has_events_and_both_kinds_of_errors(client: FlaskClient) -> None:
    paths = client.get("/openapi.json").json["paths"]  # type: ignore[index]
    found = paths["/v1/generate"]["post"]["responses"]
    assert set(found["200"]["content"]) == {"text/event-stream", "application/json"}
    assert "application/problem+json" in found["503"]["content"]
    assert "application/json" in paths["/v1/chat/completions"]["post"]["responses"]["422"]["content"]


def test_the_dashboard_is_told_of_tokens_per_second(client: FlaskClient) -> None:
    limit = {"token_ms": 1e6}
    post(client, prompt=PROMPT, options={"max_tokens": 5, "ignore_eos": True}, budget=limit)
    answer = client.get("/dashboard/runtime").json
    assert answer is not None
    latest = answer["bundles"]["talker"]["history"][-1]
    assert latest["tokens_per_second"] == pytest.approx(1e3 / latest["latency_ms"])
    assert (latest["limit_ms"], latest["met"], latest["submodel"]) == (1e6, True, "full")


def test_what_generates_text_runs_no_inputs(client: FlaskClient) -> None:
    answer = client.post("/v1/predict", json={"inputs": {"input_ids": [[1]]}})
    assert answer.status_code == 422
    assert "POST /v1/generate" in answer.text
