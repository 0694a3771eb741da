"""Budgets in milliseconds per token, over REST and on the command line, of a profile that knows what generating text costs."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from flask.testing import FlaskClient

from device_profiles import profile_document
from exporter.bundle import Bundle
from selector.service import create_app
from tests.helpers.commands import call, document, refused
from tests.helpers.decoding import first_token, per_token, profile_of
from tests.helpers.figures import ranks

WEIGHT = 0.01
TOKEN_MS, FIRST_MS = 1.2 * WEIGHT * per_token(2.0, 256), WEIGHT * first_token(1e3, 16)


@pytest.fixture(scope="module")
def bundle(words_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    path = Path(shutil.copytree(words_path, tmp_path_factory.mktemp("decoding") / "words"))
    found = Bundle(path)
    weights = {name: WEIGHT * rank for name, rank in ranks(found).items()}
    found.save_profile(profile_of(weights, found.fingerprint, device="talker"))
    return Bundle(path)


@pytest.fixture(scope="module")
def client(bundle: Bundle) -> FlaskClient:
    return create_app([bundle]).test_client()


def second_smallest(bundle: Bundle) -> str:
    return sorted(ranks(bundle), key=lambda name: ranks(bundle)[name])[1]


def test_select_takes_tokens(client: FlaskClient, bundle: Bundle) -> None:
    budget = {"token_ms": TOKEN_MS, "first_token_ms": FIRST_MS, "prompt_tokens": 16, "context": 256}
    profile = profile_document(bundle.profile("talker"))
    found = []
    for device in ({"device": "talker"}, {"profile": profile}):
        answer = client.post("/v1/select", json={**device, "budget": budget})
        assert answer.status_code == 200, answer.text
        found.append(answer.json)
    assert found[0] == found[1]
    assert found[0]["submodel"] == second_smallest(bundle)  # type: ignore[index]
    assert found[0]["token_ms"] == pytest.approx(WEIGHT * per_token(2.0, 256))  # type: ignore[index]
    assert found[0]["first_token_ms"] == pytest.approx(WEIGHT * first_token(2.0, 16))  # type: ignore[index]
    plain = client.post("/v1/select", json={"device": "bench"}).json
    assert plain is not None
    assert "token_ms" not in plain
    assert "first_token_ms" not in plain


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/v1/select", {"device": "bench", "budget": {"token_ms": 5}}, "budget.token_ms"),
        ("/v1/select", {"device": "talker", "budget": {"token_ms": 5, "latency_ms": 5}}, "budget"),
        ("/v1/select", {"device": "talker", "budget": {"first_token_ms": -1}}, "budget.first_token_ms"),
        ("/v1/bundles/words/subsets", {"device": "bench", "budget": {"first_token_ms": 5}}, "budget.first_token_ms"),
        ("/v1/predict", {"device": "bench", "budget": {"context": 5}, "inputs": {"tokens": [[1]]}}, "budget.context"),
    ],
)
def test_what_means_nothing_there_is_refused(client: FlaskClient, path: str, body: dict[str, object], field: str) -> None:
    answer = client.post(path, json=body)
    assert answer.status_code == 422, answer.text
    assert [one["field"] for one in answer.json["errors"]] == [field]  # type: ignore[index]


def test_the_command_line_takes_tokens(bundle: Bundle) -> None:
    limits = ["--token-ms", str(TOKEN_MS), "--first-token-ms", str(FIRST_MS), "--prompt-tokens", "16", "--context", "256"]
    found = document("select", bundle.path, "--device", "talker", *limits)
    assert found["submodel"] == second_smallest(bundle)
    shown = call("select", bundle.path, "--device", "talker", *limits).stdout
    assert "for a prompt of 16 and a context of 256 tokens" in shown
    assert f"{found['token_ms']:.4g} ms per token" in shown
    assert call("select", bundle.path, "--device", "talker", "--token-ms", "1e-6").exit_code == 3
    assert "generating text" in refused("select", bundle.path, "--device", "bench", "--token-ms", "5")


def test_inspect_shows_what_a_token_takes(bundle: Bundle) -> None:
    assert document("inspect", bundle.path)["decoding"] == {"talker": {"prompts": [16, 128, 512], "contexts": [64, 256, 1024]}}
    shown = call("inspect", bundle.path, "--device", "talker", "--length", "100").stdout
    assert "of one token after 100; measured were 64, 256, 1024" in shown
    largest = max(ranks(bundle).values())
    assert f" ~{WEIGHT * per_token(largest, 100):.3f} " in shown


def test_the_api_knows_the_fields(client: FlaskClient) -> None:
    schemas = client.get("/openapi.json").json["components"]["schemas"]  # type: ignore[index]
    assert {"token_ms", "first_token_ms", "prompt_tokens", "context"} <= set(schemas["QueryBudget"]["properties"])
    assert "first_token_ms" not in schemas["Selection"]["required"]
