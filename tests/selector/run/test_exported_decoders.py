"""Language models as the exporter writes them: what a device generates is what torch does, at every size and precision."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from exporter.decoder.export import DecodingOptions, export_decoder
from selector.run.decode import Decoder, GenerationOptions
from selector.run.decode.adaptive import Adaptive, Costs
from selector.run.decode.opening import DecodingProgram
from selector.run.decode.speculation import Speculation
from selector.run.generate import Generator
from tests.helpers.language import SIZES, TEMPLATE, decoder_model, language_tokenizer, mixed
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


class Eager(Adaptive):
    """Guesses as much as it may, however unsure the exit is."""

    def worth(self, below: int, chance: float, rows: int) -> bool:
        return rows < self.costs.rows[-1]


def test_the_model_guesses_itself(tmp_path: Path) -> None:
    """By its exits, and by what is there: the text of plain decoding, greedy and drawn. A token that an exit says unverified is
    told from those that the whole model says, and what it would have said of it is counted."""
    nested = decoder_model().eval()
    bundle = export_decoder(
        nested,
        tmp_path / "bundle",
        submodels=[nested.family.largest],
        precisions=("fp32", "int8-rows"),
        options=DecodingOptions(speculation=True, exits=(1, 2), exit_tokens=48),
        show_progress=False,
    )
    prompt = [5, 9, 7, 5, 9, 7, 5, 9]
    with Generator(bundle, sensors=False, battery=lambda: None, threads=1) as generator:
        for submodel in bundle.submodels:
            program = generator.runtime.program(submodel)
            assert isinstance(program, DecodingProgram)
            assert program.verifier is not None
            decoder = program.decoder(generator.described.specs[submodel])
            assert [(part.first, part.last) for part in decoder.parts] == [(0, 1), (1, 2), (2, 3)]
            for drawn in ({}, {"temperature": 1.0, "seed": 3}):
                options = GenerationOptions(max_tokens=40, ignore_eos=True, **drawn)  # type: ignore[arg-type]
                plain = [step.token for step in decoder.generate(prompt, options)]
                for mode in ("exit", "auto"):
                    eager = Eager(Costs([dict.fromkeys((1, 2, 3, 4, 5, 6, 8, 12), 1.0)] * 3))
                    speculation = Speculation(eager, mode, head=program.verifier.head)  # type: ignore[arg-type]
                    cache = decoder.cache()
                    steps = list(decoder.generate(prompt, options, cache, speculation=speculation))
                    assert [step.token for step in steps] == plain
                    speculation.end()
                    if mode == "exit":  # every call: the lower parts for each guess and once more, then the upper ones
                        calls = [step.call for step in steps[1:] if step.call.tokens]
                        assert all(call.tokens + 2 <= round(3 * (call.worth or 0)) <= 2 * 12 + 1 for call in calls)
                    assert speculation.figures.drafted > 0
                    assert set(speculation.figures.by) <= ({"exit"} if mode == "exit" else {"exit", "text"})
                    text = [*prompt, *plain]
                    np.testing.assert_array_equal(decoder.start(text, cache), decoder.start(text, decoder.cache()))
            hasty, never = (
                Speculation(program.verifier.adaptive, "exit", head=program.verifier.head, early_exit=sure)
                for sure in (1e-3, 1.0)
            )
            options = GenerationOptions(max_tokens=40, ignore_eos=True)
            assert [s.token for s in decoder.generate(prompt, options, speculation=never)] == [
                s.token for s in decoder.generate(prompt, options)
            ]
            assert (never.figures.exited, never.figures.checked, never.figures.differed) == (0, 0, 0)
            cache = decoder.cache()
            said = [step.token for step in decoder.generate(prompt, options, cache, speculation=hasty)]
            assert len(said) == 40
            assert all(token < 48 for token in said[1:12])
            assert hasty.figures.exited > 30 >= hasty.figures.exited - hasty.figures.checked
            assert 0 < hasty.figures.differed <= hasty.figures.checked
            text = [*prompt, *said]
            np.testing.assert_array_equal(decoder.start(text, cache), decoder.start(text, decoder.cache()))


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
