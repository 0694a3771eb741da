"""A run of a language model becomes a bundle that decodes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")

from exporter import ExportError
from exporter.bundle import Bundle
from exporter.decoder.export import DecodingOptions
from exporter.run import export_run
from tests.helpers.commands import call, refused
from tests.helpers.language import language_checkpoint, write_poems
from tests.helpers.runs import train
from trainer.start import Start


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("language")
    sizes = {"num_attention_heads": 4, "head_dim": 16, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2}
    language_checkpoint(folder / "checkpoint", **sizes)
    grid = {"num_hidden_layers": [1], "num_attention_heads": [4], "intermediate_size": [32], "hidden_size": [64]}
    given: dict[str, Any] = {"grid": grid, "settings": {}, "data_options": {"max_tokens": 12}, "options": {"update": "depths"}}
    source = f"text-folder:{write_poems(folder / 'poems')}"
    train(folder / "run", family="llama", data=source, start=Start(folder / "checkpoint", sort="none"), **given)
    return folder / "run"


def test_the_command_writes_every_precision_and_says_what_each_is_worth(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    asked = ["--precisions", "fp32,int8-rows,int4", "--segments", "1", "--head-bits", "8", "--quality-tokens", "40"]
    found = call("export", run, "--out", out, *asked)
    assert found.exit_code == 0, found.output
    assert "Wrote 12 sub-models" in found.output
    assert "others at most" in found.output
    bundle = Bundle(out)
    assert bundle.decoder is not None
    assert bundle.decoder.head_bits == 8
    assert 40 <= bundle.decoder.quality_tokens < 40 + 12
    assert bundle.decoder.eos == (0,)
    assert all(0 < entry.metrics["perplexity"] < 1e6 for entry in bundle.manifest.submodels)
    assert {"tokenizer.json", "chat_template.jinja"} <= set(bundle.manifest.files)
    assert bundle.manifest.preprocessing["input_ids"]["chat_template"] == "chat_template.jinja"
    shown = json.loads(call("inspect", out, "--json").stdout)
    assert {entry["precision"] for entry in shown["submodels"]} == {"fp32", "int8-rows", "int4"}
    assert shown["decoder"]["layers"] == 2
    assert call("verify", out).exit_code == 0


def test_what_is_nowhere_in_fp32_is_not_called_equal_to_torch(run: Path, tmp_path: Path) -> None:
    found = call("export", run, "--out", tmp_path / "bundle", "--precisions", "int4", "--quality-tokens", "40")
    worst = max(entry.int8_error or 0 for entry in Bundle(tmp_path / "bundle").manifest.submodels)
    assert f"; at most {worst:.1%} off torch (RMS)." in " ".join(found.output.split())


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"precisions": ["fp32", "int3"]}, r"precision 'int3': allowed are fp32, int8-rows, int8, int4$"),
        ({"submodels": ["l9"]}, r"sub-model 'l9' is not in this run"),
        ({"decoding": DecodingOptions(head_bits=8)}, r"head_bits = 8: allowed with precision int4"),
    ],
)
def test_what_a_run_does_not_have_is_refused(asked: dict[str, Any], said: str, run: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=said):
        export_run(run, tmp_path / "bundle", **asked)
    assert not (tmp_path / "bundle").exists()


def test_heads_of_exits_that_there_are_not_are_refused() -> None:
    with pytest.raises(ExportError, match="exit_tokens = 64: allowed are whole numbers from 1, with exits"):
        DecodingOptions(speculation=True, exit_tokens=64)


def test_a_place_for_genai_is_looked_at_before_the_work(run: Path, tmp_path: Path) -> None:
    out, genai = tmp_path / "bundle", tmp_path / "genai"
    assert call("export", run, "--out", out, "--genai", genai, "--quality-tokens", "40").exit_code == 0
    first = next(iter(Bundle(out).submodels))
    (genai / first / "notes.txt").write_text("mine")
    asked = ("export", run, "--out", tmp_path / "other", "--genai", genai, "--quality-tokens", "40")
    assert "is there already" in refused(*asked)
    assert "would lose notes.txt, not written in this format" in refused(*asked, "--overwrite")
    assert not (tmp_path / "other").exists()
    (genai / first / "notes.txt").unlink()
    assert call(*asked, "--overwrite").exit_code == 0
