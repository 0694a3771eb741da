"""Language models as the exporter writes them: what a device generates is what torch does, at every size and precision."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from exporter.decoder.export import export_decoder
from selector.run.decode import Decoder, GenerationOptions
from selector.run.generate import Generator
from tests.helpers.language import SIZES, TEMPLATE, language_tokenizer, mixed
from trainer import NestedModel, SubModel
from trainer.families import Llama
from trainer.tasks import LanguageModelling

PROMPT, COUNT = "sun rose", 12


def naive(nested: NestedModel, sub: SubModel, ids: list[int], count: int) -> list[int]:
    """The most probable token each time, everything computed again."""
    text = list(ids)
    with torch.no_grad():
        for _ in range(count):
            logits = nested.outputs({"input_ids": torch.tensor([text])}, sub)["logits"]
            text.append(int(logits[0, -1].argmax()))
    return text[len(ids) :]


def test_a_device_says_what_torch_says(tmp_path: Path) -> None:
    tokenizer = language_tokenizer()
    heads = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
    sizes = {**SIZES, "vocab_size": tokenizer.get_vocab_size(), "max_position_embeddings": 64, **heads}
    family = Llama({"model_type": "llama", **sizes}, tokens=9, mask=False)
    family.with_task(LanguageModelling())
    family.axes = {**family.axes, "intermediate_size": (16, 32), "hidden_size": (32, 64)}
    nested = mixed(family).eval()
    files = {"tokenizer.json": tokenizer.to_str().encode(), "chat_template.jinja": TEMPLATE.encode()}
    about = {"kind": "text", "tokenizer": "tokenizer.json", "max_tokens": 64}
    largest, smallest = nested.family.largest, nested.submodels[0]
    middle = next(sub for sub in nested.submodels if sub["num_hidden_layers"] == 2 and sub["hidden_size"] == 64)
    bundle = export_decoder(
        nested,
        tmp_path / "bundle",
        submodels=[smallest, middle, largest],
        precisions=("fp32", "int8-rows"),
        files=files,
        preprocessing={"input_ids": about},
        show_progress=False,
    )
    ids = tokenizer.encode(PROMPT).ids
    options = GenerationOptions(max_tokens=COUNT, ignore_eos=True)
    with Generator(bundle, sensors=False, battery=lambda: None, threads=1) as generator:
        text = generator.generate(PROMPT, options)
        assert "".join(piece.text for piece in text) == tokenizer.decode(naive(nested, largest, ids, COUNT))
        asked = generator.generate([{"role": "user", "content": "Why?"}], options)
        list(asked)
        assert asked.tokens == naive(nested, largest, tokenizer.encode("<user>Why?.<assistant>").ids, COUNT)
        for sub in (smallest, middle, largest):
            spec = generator.described.specs[sub.id]
            decoder = Decoder(generator.runtime.program(sub.id).session, spec)  # type: ignore[attr-defined]
            assert [step.token for step in decoder.generate(ids, options)] == naive(nested, sub, ids, COUNT)
            integers = generator.runtime.program(f"{sub.id}-int8-rows").session  # type: ignore[attr-defined]
            exact, near = (Decoder(session, spec).start(ids, decoder.cache()) for session in (decoder.session, integers))
            assert 0 < np.abs(exact - near).max() < 0.1 * np.abs(exact).max()
