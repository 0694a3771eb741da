"""Clients of OpenAI's interface: its own package where it is installed, and what it does not show over plain HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient

from exporter.bundle import Bundle, BundleError
from selector.run.generate.generation import Generation
from selector.service import GenerateOptions, create_app
from tests.helpers.generators import tiny, tokenizer, write_bundle
from tests.helpers.server import Server, serving
from tests.helpers.texts_served import events

PROMPT = "What a fine day"
CHAT = [{"role": "system", "content": "Be brief"}, {"role": "user", "content": "Hello"}]
GREEDY = {"temperature": 0, "max_tokens": 6}
SMALL = {"memory_mb": 25, "token_ms": 1000}
"""What the two smallest keep, however fast this machine is."""


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("talker") / "talker").path


@pytest.fixture(scope="module")
def client(path: Path) -> FlaskClient:
    return create_app([Bundle(path)], generate=GenerateOptions(cores=1, max_tokens=64)).test_client()


def text_of(ids: list[int]) -> str:
    return str(tokenizer().decode(ids))


def chat_ids() -> list[int]:
    found: list[int] = (
        tokenizer().encode("<|start|>system\nBe brief<|end|>\n<|start|>user\nHello<|end|>\n<|start|>assistant\n").ids
    )
    return found


def post(client: FlaskClient, path: str, **body: Any) -> Any:
    answer = client.post(f"/v1/{path}", json={"model": "talker", **body} if path != "generate" else body)
    assert answer.status_code == 200, answer.text
    return answer


def test_a_completion(client: FlaskClient) -> None:
    expected = tiny("full").greedy(tokenizer().encode(PROMPT).ids, 6)
    for prompt in (PROMPT, [PROMPT], tokenizer().encode(PROMPT).ids):
        found = post(client, "completions", prompt=prompt, **GREEDY).json
        assert found["object"] == "text_completion"
        assert found["model"] == "talker"
        assert found["submodel"] == "full"
        assert found["choices"] == [{"index": 0, "text": text_of(expected), "logprobs": None, "finish_reason": "length"}]
        assert found["usage"]["total_tokens"] == len(PROMPT) + 6
    own = post(client, "generate", prompt=PROMPT, options=GREEDY, stream=False).json
    assert own["energy_mj"] > 0
    assert [found["usage"][name] for name in ("energy_mj", "energy_source")] == [own["energy_mj"], "measured"]
    most = post(client, "completions", prompt=PROMPT, seed=3).json
    assert most["usage"]["completion_tokens"] <= 16  # where nobody says a number


def test_a_stream_of_chunks_ends_with_usage_and_the_word(client: FlaskClient) -> None:
    body = {"messages": CHAT, "stream": True, "stream_options": {"include_usage": True}, **GREEDY}
    *chunks, counted, done = events(post(client, "chat/completions", **body).data)
    assert done.document == "[DONE]"
    assert counted.document["choices"] == []
    assert counted.document["usage"]["completion_tokens"] == 6
    assert counted.document["usage"]["energy_mj"] > 0
    deltas = [chunk.document["choices"][0] for chunk in chunks]
    assert deltas[0]["delta"] == {"role": "assistant", "content": ""}
    assert "".join(one["delta"].get("content", "") for one in deltas) == text_of(tiny("full").greedy(chat_ids(), 6))
    assert [one["finish_reason"] for one in deltas][-2:] == [None, "length"]
    assert len({chunk.document["id"] for chunk in [*chunks, counted]}) == 1
    assert {chunk.document["object"] for chunk in [*chunks, counted]} == {"chat.completion.chunk"}
    *chunks, done = events(post(client, "completions", prompt=PROMPT, stream=True, **GREEDY).data)
    assert {chunk.document["object"] for chunk in chunks} == {"text_completion"}
    assert chunks[-1].document["choices"][0]["finish_reason"] == "length"


def test_a_budget_goes_along(client: FlaskClient) -> None:
    assert post(client, "completions", prompt=PROMPT, budget=SMALL, **GREEDY).json["submodel"] == "shallow"


def test_parts_and_either_name_of_the_limit(client: FlaskClient) -> None:
    parts = [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]
    messages = [CHAT[0], {"role": "user", "content": parts, "name": "me"}]
    found = post(client, "chat/completions", messages=messages, temperature=0, max_completion_tokens=6, n=1, tools=[]).json
    assert found["choices"][0]["message"]["content"] == text_of(tiny("full").greedy(chat_ids(), 6))
    assert found["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize(
    ("place", "body", "param", "said"),
    [
        ("completions", {"prompt": ""}, "prompt", "empty"),
        ("completions", {"prompt": ["a", "b"]}, "prompt", "allowed is one"),
        ("completions", {"prompt": "x" * 600}, "prompt", "allowed are less than 512"),
        ("completions", {"prompt": [300]}, "prompt", "allowed are token ids"),
        ("completions", {"prompt": "x", "n": 2}, None, "n = 2: is not supported; allowed is 1"),
        ("completions", {"prompt": "x", "logprobs": 5}, None, "logprobs = 5"),
        ("completions", {"prompt": "x", "echo": True}, None, "echo = True"),
        ("completions", {"prompt": "x", "max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
        ("completions", {"prompt": "x", "max_tokens": 65}, "max_tokens", "allowed are 1 to 64"),
        ("completions", {"prompt": "x", "temperature": float("nan")}, "temperature", "finite"),
        ("completions", {"prompt": "x", "shout": True}, "shout", "there is no such field; allowed are model"),
        ("chat/completions", {"messages": CHAT, "max_completion_tokens": 65}, "max_completion_tokens", "allowed are 1 to 64"),
        ("chat/completions", {"messages": CHAT, "max_tokens": 65}, "max_tokens", "allowed are 1 to 64"),
        ("chat/completions", {"messages": [{"role": "user", "content": "x" * 600}]}, "messages", "allowed are less than 512"),
        ("chat/completions", {"messages": []}, "messages", "at least 1"),
        ("chat/completions", {"messages": [{"role": "king", "content": "x"}]}, "messages.0.role", "system"),
        ("chat/completions", {"messages": CHAT, "tools": [{"type": "function"}]}, None, "tools"),
        ("chat/completions", {"messages": CHAT, "response_format": {"type": "json_object"}}, None, "response_format"),
        ("chat/completions", {"messages": CHAT, "budget": {"latency_ms": 5}}, "budget.latency_ms", "token_ms"),
    ],
)
def test_errors_have_that_interfaces_form(
    client: FlaskClient, place: str, body: dict[str, Any], param: str | None, said: str
) -> None:
    answer = client.post(f"/v1/{place}", json={"model": "talker", **body})
    assert answer.status_code == 400, answer.text
    error = answer.json["error"]  # type: ignore[index]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["type"], error["param"]) == ("invalid_request_error", param), error
    assert said in error["message"]


@pytest.mark.parametrize(("place", "body"), [("completions", {"prompt": "x"}), ("chat/completions", {"messages": CHAT})])
def test_who_says_no_number_of_tokens_gets_as_many_as_are_allowed(path: Path, place: str, body: dict[str, Any]) -> None:
    client = create_app([Bundle(path)], generate=GenerateOptions(cores=1, max_tokens=3)).test_client()
    assert post(client, place, seed=3, **body).json["usage"]["completion_tokens"] <= 3


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("after", [0, 2])
@pytest.mark.parametrize("kind", [BundleError, RuntimeError])
@pytest.mark.parametrize(("place", "body"), [("completions", {"prompt": "x"}), ("chat/completions", {"messages": CHAT})])
def test_what_fails_here_is_said_as_the_servers_error(
    client: FlaskClient,
    monkeypatch: pytest.MonkeyPatch,
    place: str,
    body: dict[str, Any],
    kind: type[Exception],
    after: int,
    stream: bool,
) -> None:
    advance = Generation._advance

    def breaks(text: Generation) -> Any:
        if len(text.tokens) == after:
            raise kind("the graph computes no more")
        return advance(text)

    monkeypatch.setattr(Generation, "_advance", breaks)
    answer = client.post(f"/v1/{place}", json={"model": "talker", "stream": stream, **body, **GREEDY})
    if stream and after:  # the status is out
        *_, last = events(answer.data)
        assert last.name == ""
        error = last.document["error"]
    else:
        assert (answer.status_code, answer.mimetype) == (500, "application/json")
        error = answer.json["error"]  # type: ignore[index]
    assert (error["type"], error["param"], error["code"]) == ("server_error", None, None)
    assert client.application.extensions["sortednet.generating"].gate.running == 0


def test_models(client: FlaskClient) -> None:
    listed = client.get("/v1/models").json
    assert listed is not None
    assert [one["id"] for one in listed["data"]] == ["talker"]
    assert client.get("/v1/models/talker").json == listed["data"][0]
    answer = client.post("/v1/completions", json={"model": "gpt", "prompt": "x"})
    assert answer.status_code == 404
    assert answer.json["error"]["code"] == "model_not_found"  # type: ignore[index]
    assert client.post("/v1/completions", data=b"{}", content_type="text/plain").status_code == 415
    assert client.get("/v1/models/gpt").json["error"]["code"] == "model_not_found"  # type: ignore[index]


@pytest.fixture(scope="module")
def server(path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    pytest.importorskip("openai")
    with serving(tmp_path_factory.mktemp("openai") / "log", path) as found:
        yield found


def test_the_openai_package(server: Server) -> None:
    """All that most of its users do."""
    import openai

    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0, timeout=60)
    expected = text_of(tiny("full").greedy(chat_ids(), 6))
    assert [one.id for one in client.models.list()] == ["talker"]
    assert client.models.retrieve("talker").owned_by == "sortednet"
    asked: dict[str, Any] = {"model": "talker", "messages": CHAT, "temperature": 0, "max_tokens": 6}
    answer = client.chat.completions.create(**asked)
    assert answer.choices[0].message.content == expected
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 6
    assert answer.usage.model_dump()["energy_source"] == "measured"
    chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert "".join(one.choices[0].delta.content or "" for one in chunks if one.choices) == expected
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 6
    assert chunks[-1].usage.model_dump()["energy_mj"] > 0
    one = client.completions.create(model="talker", prompt=PROMPT, temperature=0, max_tokens=4, stop=["\0"])
    assert one.choices[0].text == text_of(tiny("full").greedy(tokenizer().encode(PROMPT).ids, 4))
    small = client.chat.completions.create(**asked, extra_body={"budget": SMALL})
    assert small.model_dump()["submodel"] == "shallow"
    with pytest.raises(openai.BadRequestError, match="n = 2"):
        client.chat.completions.create(**asked, n=2)
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model="gpt", prompt="x")
