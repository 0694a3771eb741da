"""GGUF: what a file of llama.cpp says becomes a family, its weights and its tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.ggufs import write_gguf
from tests.helpers.language import TEMPLATE
from trainer import DataSpec, NestedModel, TrainerError
from trainer.data.pretrained import read_pretrained
from trainer.families import Llama
from trainer.gguf import gguf_config
from trainer.weights import load_weights, read_weights


def test_a_file_says_what_its_model_said(tmp_path: Path) -> None:
    model = write_gguf(tmp_path / "tiny.gguf")
    spec = DataSpec((9,), 0, vocabulary=10, inputs={"input_ids": (9,)}, target_shape=(9,), next_token=True)
    found = Llama.for_data(spec, checkpoint=tmp_path / "tiny.gguf")
    assert str(tmp_path) not in str(found.config())
    nested = NestedModel(found).eval()
    loaded = load_weights(nested, read_weights(tmp_path / "tiny.gguf"), spec.outputs)
    assert (loaded.anew, loaded.left_over) == ([], [])
    inputs = found.example_inputs(2)
    torch.testing.assert_close(nested.outputs(inputs)["logits"], model(**inputs).logits, rtol=1e-4, atol=1e-5)
    read = read_pretrained(str(tmp_path / "tiny.gguf"))
    assert (read.positions, read.marks.eos_ids, read.marks.template) == (64, (0,), TEMPLATE)
    assert read.tokenizer.decode(read.tokenizer.encode("sun rose").ids) == "sun rose"


@pytest.mark.parametrize(
    ("architecture", "keys", "message"),
    [
        ("gptneox", {}, "general.architecture is 'gptneox'; allowed are llama, mistral, qwen2, qwen3"),
        ("llama", {"llama__expert_count": 8}, "llama.expert_count is 8; allowed are models without experts"),
        ("llama", {"split__count": 2}, r"split.count is 2; allowed is a model in one file"),
        ("llama", {"llama__rope__scaling__type": "yarn"}, r"its rotary positions are scaled \(yarn\)"),
    ],
)
def test_what_is_not_carried_is_refused_by_name(architecture: str, keys: dict[str, Any], message: str, tmp_path: Path) -> None:
    write_gguf(tmp_path / "other.gguf", architecture, **keys)
    with pytest.raises(TrainerError, match=message):
        read_weights(tmp_path / "other.gguf")


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ({"without": "blk.1."}, r"has no model\.layers\.1\..*, 9 in all; allowed is the whole model"),
        ({"extra": "blk.0.attn_q.bias"}, r"has \d+ tensors, of which transformers reads \d+; the file's are .*attn_q\.bias"),
    ],
)
def test_weights_that_are_not_the_models_are_refused(written: dict[str, str], message: str, tmp_path: Path) -> None:
    """transformers gives those that lack random numbers, and leaves others out."""
    write_gguf(tmp_path / "part.gguf", **written)
    with pytest.raises(TrainerError, match=message):
        read_weights(tmp_path / "part.gguf")


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cut.gguf").write_bytes(b"GGUF" + bytes(30))
    with pytest.raises(TrainerError, match=r"cut\.gguf: cannot be read as GGUF"):
        gguf_config(tmp_path / "cut.gguf")
