"""`sortednet generate`: text on stdout, figures on stderr, errors of one line."""

from __future__ import annotations

import subprocess
import sys
from io import StringIO
from pathlib import Path
from unittest.mock import patch

import pytest

from exporter.bundle import Bundle
from selector.service import create_app
from sortednet.watch_text import watch_text
from tests.helpers.commands import call, document, refused
from tests.helpers.generators import always_guess, tiny, tokenizer, write_bundle

PROMPT = "Once upon a time"
LIMITS = ("--max-tokens", "12", "--ignore-eos", "--no-feedback", "--threads", "1")


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundles") / "talker"
    write_bundle(path)
    return path


def expected(size: str, prompt: str = PROMPT, count: int = 12) -> str:
    made = tokenizer()
    return str(made.decode(tiny(size, eos=()).greedy(made.encode(prompt).ids, count)))


def test_text_on_stdout_and_figures_on_stderr(path: Path) -> None:
    ran = call("generate", path, "--prompt", PROMPT, *LIMITS, "--ms-per-token", "8")
    assert ran.exit_code == 0, ran.stderr
    assert ran.stdout == expected("middle") + "\n"
    assert "12 tokens (length), 16 tokens of prompt" in ran.stderr
    assert "tokens/s" in ran.stderr
    assert "middle: " in ran.stderr


def test_json(path: Path) -> None:
    ran = document("generate", path, "--prompt", PROMPT, *LIMITS, "--first-token-ms", "5")
    assert ran["text"] == expected("shallow")
    assert (ran["submodel"], ran["tokens"], ran["prompt_tokens"], ran["finish"]) == ("shallow", 12, 16, "length")
    energies = {name: costs.energy_mj for name, costs in Bundle(path).profile("bench").submodels.items()}
    assert 0 < ran["energy_mj"] <= (12 + 16) * energies["shallow"]
    assert ran["energy_source"] == "measured"
    assert ran["feasible"] is True
    assert ran["switches"] == []


def test_limits_that_no_size_keeps_are_said_before_the_text(path: Path) -> None:
    asked = ("generate", path, "--prompt", PROMPT, *LIMITS, "--ms-per-token", "0.1")
    said = "warning: no size keeps these limits, small generates all the same: nothing fits: the nearest sub-model has latency"
    near = document(*asked, code=3)
    assert (near["submodel"], near["feasible"]) == ("small", False)
    assert near["reason"].startswith("nothing fits: the nearest sub-model has latency")
    for more in ((), ("--json",), ("--watch",)):
        ran = call(*asked, *more)
        assert ran.exit_code == 3
        assert ran.stderr.startswith(said), more
    assert "warning" not in call("generate", path, "--prompt", PROMPT, *LIMITS, "--ms-per-token", "8").stderr


def test_a_chat_and_a_stop_string(path: Path) -> None:
    asked = "<|start|>system\nBe brief.<|end|>\n<|start|>user\nWhy?<|end|>\n<|start|>assistant\n"
    text = expected("full", asked, 12)
    found = document("generate", path, "--chat", "--system", "Be brief.", "--prompt", "Why?", *LIMITS)
    assert found["text"] == text
    stopped = document("generate", path, "--prompt", PROMPT, *LIMITS, "--stop", expected("full")[3:5])
    assert stopped["text"] == expected("full")[: expected("full").find(expected("full")[3:5])]
    assert stopped["finish"] == "stop"


def test_a_prompt_on_stdin(path: Path) -> None:
    """As a process: what a text is comes in bytes there."""
    command = [sys.executable, "-m", "sortednet", "generate", str(path), "--prompt", "-", *LIMITS]
    ran = subprocess.run(command, input="Ein Tür".encode(), capture_output=True)
    assert ran.returncode == 0, ran.stderr.decode()
    assert ran.stdout.decode() == expected("full", "Ein Tür") + "\n"
    wrong = subprocess.run(command, input=b"ab\xff", capture_output=True)
    assert wrong.returncode == 2
    assert wrong.stderr.decode() == "error: prompt: byte 2 of stdin is 0xff, which is no UTF-8; allowed is UTF-8\n"


def test_a_low_battery_takes_a_smaller_size(path: Path, tmp_path: Path) -> None:
    """The least energy that keeps half of the quality."""
    policy = tmp_path / "policy.json"
    policy.write_text('{"levels": [{"below_percent": 20, "keep_quality": 0.5}]}')
    for percent, size in (("90", "full"), ("5", "shallow")):
        ran = document("generate", path, "--prompt", PROMPT, *LIMITS, "--battery", percent, "--policy", policy)
        assert (ran["submodel"], ran["text"]) == (size, expected(size))
    assert "battery at 5 % and discharging" in ran["reason"]
    with patch("selector.run.runtime.Runtime.battery", lambda runtime: None):
        plugged = call("generate", path, "--prompt", PROMPT, *LIMITS, "--policy", policy)
    assert (plugged.exit_code, plugged.stdout) == (0, expected("full") + "\n")
    assert "note: --policy changes nothing: no battery was found on this device; --battery PERCENT" in plugged.stderr


@pytest.mark.parametrize("option", ["--prompt-tokens", "--context"])
def test_longer_texts_than_the_model_can_have_are_refused_as_generate_does(path: Path, option: str) -> None:
    decoder = Bundle(path).decoder
    assert decoder is not None
    asked = ("select", path, "--token-ms", "8", option)
    assert call(*asked, str(decoder.context - 1)).exit_code == 0
    allowed = f"{decoder.context}: allowed are less than {decoder.context}, which is the context"
    assert f"{option[2:].replace('-', '_')} = {allowed}" in refused(*asked, str(decoder.context))
    assert f"length = {allowed}" in refused("inspect", path, "--length", str(decoder.context))
    body = {"device": "bench", "budget": {option[2:].replace("-", "_"): decoder.context}}
    answer = create_app([Bundle(path)]).test_client().post("/v1/select", json=body)
    assert (answer.status_code, "less than" in answer.text) == (422, True)


def test_watching_shows_the_text_and_returns_it(path: Path) -> None:
    from rich.console import Console

    from selector.choose.budget import Budget
    from selector.run.generate import GenerationOptions, Generator

    console = Console(width=100, record=True, file=StringIO(), force_terminal=True)
    budget = Budget(token_ms=8.0)
    with Generator(path, feedback=False, sensors=False, threads=1) as generator:
        text = generator.generate(PROMPT, GenerationOptions(max_tokens=12, ignore_eos=True), budget)
        assert watch_text(generator, text, budget, console) == expected("middle")
    seen = console.export_text()
    assert "middle" in seen
    assert "limit 8 ms" in seen
    assert "16 tokens of prompt" in seen


def test_guessed_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same text; how many came is in the figures, in the document and on the screen."""
    from rich.console import Console

    from selector.choose.budget import Budget
    from selector.run.generate import GenerationOptions, Generator

    always_guess(monkeypatch)
    bundle, prompt = write_bundle(tmp_path / "guessing", verifies=["full"], eos=()).path, "abc abc abc "
    asked = ("generate", bundle, "--prompt", prompt, "--max-tokens", "60", "--threads", "1")
    plain = document(*asked, "--speculative", "off")
    ran = document(*asked)
    assert ran["text"] == plain["text"] == expected("full", prompt, 60)
    assert plain["guesses"]["drafted"] == 0
    assert 0 < ran["guesses"]["accepted"] == ran["guesses"]["by"]["text"] < ran["guesses"]["drafted"]
    said = call(*asked).stderr
    assert f"{ran['guesses']['accepted']} of {ran['guesses']['drafted']} guesses came (text " in said
    assert "allowed are auto, off, ngram" in refused(*asked, "--speculative", "exit")
    assert "early_exit = 0.9: no graph that is open here has exits" in refused(*asked, "--early-exit", "0.9")
    console = Console(width=100, record=True, file=StringIO(), force_terminal=True)
    with Generator(bundle, sensors=False, threads=1) as generator:
        watch_text(generator, generator.generate(prompt, GenerationOptions(max_tokens=60)), Budget(), console)
    assert "guesses came" in console.export_text()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--prompt", ""], "prompt: is empty"),
        (["--prompt", "a", "--max-tokens", "0"], "max_tokens = 0: allowed are whole numbers from 1"),
        (["--prompt", "a", "--temperature", "nan"], "temperature = nan: allowed are finite values from 0 to 100"),
        (["--prompt", "a" * 600], "prompt: 600 tokens; allowed are less than 512, which is the context"),
        (["--prompt", "a", "--ms-per-token", "-1"], "token_ms = -1"),
        (["--prompt", "a", "--system", "b"], "system = 'b': allowed with --chat"),
        (["--prompt", "a", "--stop", ""], "stop = ['']: allowed are"),
        (["--prompt", "a", "--memory-mb", "1"], "memory_mb"),
    ],
)
def test_bad_input(path: Path, given: list[str], message: str) -> None:
    assert message in refused("generate", path, *given)
