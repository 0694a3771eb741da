"""What happens in the middle of a text: a step of load, and a conversation that goes on."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from benchmarks.llm.measured import Measured, measured
from benchmarks.llm.turns import Figures
from benchmarks.load import SPINNING, Competitors
from device_profiles import write_profile
from exporter.bundle import Bundle
from selector import Budget, profile_bundle
from selector.run.generate import GenerationOptions, Generator

DEVICE = "llm"
MEASURED, REPEATS = 10, 20
TEXTS, TOKENS, STEP = 7, 96, 32
"""Texts, tokens of each, and how many come before the step."""
SLACK = 1.25
"""The limit, over the full size's median at the profile's context."""
WINDOW = 8
BESIDE = 3  # processes that count for each core, from the step on
CHAT, FOLLOWING, AGAIN = 2000, 512, 5
VOCABULARY = 49_000  # token ids that are drawn

NOTES = {
    "switch_recover_tokens": f"{BESIDE} processes for each core begin to count after {STEP} tokens of a text that has a limit "
    f"per token ({SLACK} times the full size's median): how many tokens come until the median of {WINDOW} keeps it again (the "
    f"first of these counts); two threads, int4, the median of {TEXTS} texts; _max: the longest",
    "switch_tokens": "how many tokens each such text has at its end, at least",
    "switch_unloaded": "changes of the size before the step, mean",
    "switch_kept": "share of tokens after the step that keep the limit; .without: where the full size alone goes on",
    "prompt_reuse_ratio": f"first token of a chat of {CHAT} tokens with {FOLLOWING} more, whose beginning was read before, "
    f"over the same where nothing was; the full size, fp32 and int4 (the worse), one thread, medians of {AGAIN}",
}


class Told(NamedTuple):
    """Of one text: what each token took, and after how many another size went on."""

    ms: list[float]
    switches: list[int]


def step(texts: int = TEXTS, tokens: int = TOKENS, repeats: int = REPEATS) -> Figures:
    given = measured()
    bundle = profiled(given, "int4", 2, repeats)
    full = max(bundle.submodels, key=lambda name: bundle.submodels[name].macs)
    with Generator(bundle, device=DEVICE, battery=lambda: None) as generator:
        curves = generator.runtime.candidates.decoding[full, DEVICE]
        limit = SLACK * curves.token.at(256)
        budget = Budget(token_ms=limit)
        ours = [told(generator, budget, tokens, number) for number in range(texts)]
    alone = _only(bundle, full)
    with Generator(bundle, device=DEVICE, battery=lambda: None, feedback=False) as generator:
        fixed = [told(generator, alone, tokens, number) for number in range(texts)]
    return figures(ours, fixed, limit)


def figures(ours: Sequence[Told], fixed: Sequence[Told], limit: float) -> Figures:
    recovered = [recovery(one.ms[STEP:], limit) for one in ours]

    def kept(texts: Sequence[Told]) -> float:
        return float(np.mean([ms <= limit for one in texts for ms in one.ms[STEP:]]))

    return {
        "switch_recover_tokens": float(np.median(recovered)),
        "switch_recover_tokens_max": max(recovered),
        "switch_tokens": min(len(one.ms) for one in ours),
        "switch_unloaded": float(np.mean([sum(at < STEP for at in one.switches) for one in ours])),
        "switch_kept": kept(ours),
        "switch_kept.without": kept(fixed),
    }


def recovery(ms: Sequence[float], limit: float, window: int = WINDOW) -> int:
    """How many tokens come before those WINDOW whose median keeps the limit; all of them where that never is."""
    for place in range(len(ms) - window + 1):
        if ms[place] <= limit and float(np.median(ms[place : place + window])) <= limit:
            return place
    return len(ms)


def told(generator: Generator, budget: Budget, tokens: int, seed: int) -> Told:
    """One text, whose load begins after STEP tokens."""
    prompt = ids(64, VOCABULARY, seed)
    took = []
    with Competitors(SPINNING, BESIDE * (os.cpu_count() or 1)) as others:
        time.sleep(0.5)
        with generator.generate(prompt, GenerationOptions(max_tokens=tokens, ignore_eos=True), budget) as text:
            for piece in text:
                took.append(piece.ms)
                if len(took) == STEP:
                    others.set(BESIDE * (os.cpu_count() or 1))
            return Told(took, [switch.token for switch in text.switches])


def reuse(chat: int = CHAT, following: int = FOLLOWING, again: int = AGAIN) -> Figures:
    given = measured()
    found = {}
    for precision in ("fp32", "int4"):
        bundle = given.bundle(precision)
        with Generator(bundle, threads=1, battery=lambda: None, feedback=False) as generator:
            known, anew = [], []
            for number in range(again):
                beginning, more = ids(chat, VOCABULARY, 2 * number), ids(following, VOCABULARY, 2 * number + 1)
                first_ms(generator, beginning)
                known.append(first_ms(generator, [*beginning, *more]))
                anew.append(first_ms(generator, [*beginning[::-1], *more]))
        found[f"prompt_reuse_ratio.{precision}"] = float(np.median(known) / np.median(anew))
    return {"prompt_reuse_ratio": max(found.values()), **found}


def first_ms(generator: Generator, prompt: list[int]) -> float:
    """Of the first token after this prompt, by the full size."""
    with generator.generate(prompt, GenerationOptions(max_tokens=1, ignore_eos=True)) as text:
        return next(text).ms


def profiled(given: Measured, precision: str, threads: int, repeats: int = REPEATS) -> Bundle:
    """The bundle with a profile of this machine: MEASURED sizes are measured, the others follow from them. What has no measured
    quality is as good as its share of parameters."""
    bundle = given.bundle(precision)
    path = bundle.path / "profiles" / f"{DEVICE}.json"
    path.parent.mkdir(exist_ok=True)
    found = profile_bundle(
        bundle,
        device=DEVICE,
        threads=threads,
        contexts=(64, 256),
        prompts=(16, 128),
        predict_from=MEASURED,
        repeats=repeats,
        show_progress=False,
    )
    write_profile(found, path)
    return bundle


def _only(bundle: Bundle, full: str) -> Budget:
    """That the full size alone keeps, whatever it takes."""
    best = bundle.submodels[full].quality
    return Budget(min_quality=best) if best else Budget()


def ids(count: int, vocabulary: int, seed: int) -> list[int]:
    found: list[int] = np.random.default_rng(seed).integers(min(100, vocabulary // 2), vocabulary, count).tolist()
    return found
