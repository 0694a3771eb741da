"""Whether greedy text is what torch would say, at every size.

Torch reads each prompt with our text behind it once. Where its likeliest token is ours at every place of the text, it would
have written the same text; where another one is likelier by less than TIE, both are as good as equal.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from tokenizers import Tokenizer

from benchmarks.llm.measured import WORK, Measured, measured, prompts
from benchmarks.llm.turns import Figures
from benchmarks.pieces import Pieces, hash_of
from exporter.bundle.session import SessionOptions, open_session
from selector.run import decode
from selector.run.decode import Decoder, GenerationOptions
from selector.run.generate.described import Described
from trainer import SubModel

PROMPTS, TOKENS, TIE = 20, 200, 1e-3

NOTES = {
    "greedy_equal": f"share of {PROMPTS} texts of {TOKENS} tokens at every size, fp32, in each of which torch's likeliest "
    f"token after prompt and text so far is ours at every place, or is likelier by less than {TIE:g} (teacher forcing: torch "
    "reads prompt and text once); all texts of a size are generated side by side, those of the full size one by one too",
    "greedy_ties": "places of all texts where torch's likeliest is another one within that",
    "greedy_worst": "the most by which a token that torch prefers is likelier than ours, as a difference of logits",
}


class Compared(NamedTuple):
    """Of one text."""

    equal: bool  # at each place the same token, or a tie
    ties: int
    worst: float  # largest difference of logits at a place with another token


def measure(names: Sequence[str] = (), count: int = PROMPTS, tokens: int = TOKENS) -> Figures:
    """`names`: of sizes, default all."""
    given = measured()
    tokenizer = Tokenizer.from_str(given.files["tokenizer.json"].decode())
    asked = [tokenizer.encode(text).ids for text in prompts(count)]
    found: list[Compared] = []
    done = Pieces(
        WORK / "pieces" / "greedy.jsonl", hash_of(given.bundle("fp32").manifest.sha256, str(asked), str(tokens), decode)
    )
    for name in names or given.sizes:
        own = [Compared(*one) for one in done.of(name, lambda name=name: at_size(given, name, asked, tokens))]  # type: ignore[misc]
        print(name, f"{sum(one.equal for one in own)} of {len(own)} equal, {sum(one.ties for one in own)} ties", flush=True)
        found += own
    return figures(found)


def figures(found: Sequence[Compared]) -> Figures:
    return {
        "greedy_equal": sum(one.equal for one in found) / len(found),
        "greedy_texts": len(found),
        "greedy_ties": sum(one.ties for one in found),
        "greedy_worst": max(one.worst for one in found),
    }


def at_size(given: Measured, name: str, asked: Sequence[list[int]], tokens: int) -> list[Compared]:
    bundle = given.bundle("fp32")
    decoder = Decoder(open_session(bundle.graph_path(name), SessionOptions(threads=1)), Described.of(bundle).specs[name])
    options = GenerationOptions(max_tokens=tokens, ignore_eos=True)
    texts: list[list[int]] = [[] for _ in asked]
    for number, step in decoder.generate_many(asked, options):
        texts[number].append(step.token)
    pairs = list(zip(asked, texts, strict=True))
    if name == given.full:
        pairs += [(prompt, [step.token for step in decoder.generate(prompt, options)]) for prompt in asked]
    return [compared(given, given.sizes[name], prompt, text) for prompt, text in pairs]


@torch.inference_mode()
def compared(given: Measured, sub: SubModel, prompt: Sequence[int], text: Sequence[int]) -> Compared:
    ids = torch.tensor([[*prompt, *text]])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    logits = given.nested.outputs({name: inputs[name] for name in given.nested.input_names}, sub)["logits"][0].numpy()
    said = logits[len(prompt) - 1 : -1]  # (tokens, V)
    lost = said.max(axis=1) - said[np.arange(len(text)), list(text)]
    others = said.argmax(axis=1) != np.array(text)
    return Compared(bool((lost <= TIE).all()), int((others & (lost <= TIE)).sum()), float(lost[others].max(initial=0.0)))
