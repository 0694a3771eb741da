"""What experiments of `benchmarks/text` have in common, so small that a test can run them."""

from __future__ import annotations

from pathlib import Path

from benchmarks.text.experiment import Setting
from benchmarks.training.experiment import macs_of
from tests.helpers.hugging_face import TINY
from tests.helpers.texts import write_checkpoint, write_texts
from trainer.data import load_data
from trainer.family import find_family

GRID = {"num_hidden_layers": [1, 2], "intermediate_size": [8, 16], "num_attention_heads": [1, 2]}


def tiny_setting(folder: Path) -> Setting:
    """A BERT of eight sizes, from random numbers, over texts of nine words; they are written into the folder."""
    write_texts(folder / "texts", words=9)
    tokenizer = write_checkpoint(folder / "checkpoint")
    data = load_data(f"text-folder:{folder / 'texts'}", {"tokenizer": str(tokenizer), "max_tokens": 20})
    config = {"model_type": "bert", **TINY["bert"]}
    family = find_family("bert").for_data(data.spec, config=config, fixed=["hidden_size"]).with_grid(GRID)
    return Setting(data, family, macs_of(family))
