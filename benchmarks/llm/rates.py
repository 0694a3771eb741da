"""Plain decoding against what people would use instead, from the same weights, and a prompt read at once."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.llm.measured import Measured, measured
from benchmarks.llm.peers import genai, llamacpp
from benchmarks.llm.scores import of_ours, of_worker
from benchmarks.llm.turns import (
    CONTEXTS,
    PROMPT,
    ROUNDS,
    THREADS,
    Entrant,
    Figures,
    Seconds,
    Worker,
    compare,
    milliseconds,
    times_as_fast,
)
from exporter.decoder.write import identifier

SUMMARY = Path(__file__).parent / "results" / "summary.json"
OURS = {"f32": "fp32", "q8_0": "int8-rows", "q4_0": "int4"}
"""Of llama.cpp's forms, our precisions that are compared with them."""
ALSO = {"q8_0": "int8"}

NOTES = {
    "genai_ratio.fp32": "tokens per second over onnxruntime-genai's, whose model its own builder made from the same weights; "
    f"greedy, contexts {' and '.join(map(str, CONTEXTS))}, processor time of one thread and wall time of two; the worst of "
    "these, each the median of turns; .256.1: context, threads",
    "llamacpp_ratio.f32": "the same over llama.cpp's through llama-cpp-python, compiled for this processor",
    "llamacpp_ratio.q8_0": "the same, ours int8-rows; .q8_0_blocks: ours int8 in blocks",
    "prefill_ratio": f"how many times as fast a prompt of {PROMPT} tokens is read as by the better of both; the worst of "
    "precisions and threads",
    "ms.fp32.256.1": "milliseconds of a token: precision, context, threads; of peers by their own names",
    "memory_ratio": "memory that opening the full size, a prompt and some tokens add, over what they add with genai, whose "
    "texts have room for as many tokens; the worse of fp32 and int4",
    "llamacpp_perplexity.q8_0": "of BBC's test part, as perplexity.* are",
}


def of_genai(rounds: int = ROUNDS, contexts: Sequence[int] = CONTEXTS) -> Figures:
    given = measured()
    found: Figures = {}
    for precision in ("fp32", "int4"):
        entrants = {"ours": ours(given, precision), "genai": genai(given, precision)}
        found |= against(entrants, "genai", precision, precision, rounds, contexts)
        found |= memory(entrants, precision)
    found["memory_ratio"] = max(found["memory_ratio.fp32"], found["memory_ratio.int4"])
    return with_prefill(found)


def of_llamacpp(rounds: int = ROUNDS, contexts: Sequence[int] = CONTEXTS) -> Figures:
    given = measured()
    found: Figures = {}
    for form, precision in OURS.items():
        entrants = {"ours": ours(given, precision), "llamacpp": llamacpp(given, form)}
        if form in ALSO:
            entrants["blocks"] = ours(given, ALSO[form])
        found |= against(entrants, "llamacpp", form, precision, rounds, contexts)
    return with_prefill(found)


def perplexities() -> Figures:
    """Of the full model in each precision, of the original, and of llama.cpp's forms."""
    given = measured()
    found = of_ours(given)
    return found | {f"llamacpp_perplexity.{form}": of_worker(llamacpp(given, form), given) for form in OURS}


def ours(given: Measured, precision: str, name: str = "") -> Entrant:
    """A size in a precision, default the full one."""
    own = identifier(name or given.full, precision)
    return Entrant("ours", f"{given.bundle(precision).path.absolute()}::{own}")


def against(
    entrants: Mapping[str, Entrant], peer: str, form: str, precision: str, rounds: int, contexts: Sequence[int]
) -> Figures:
    """Ratios of ours, and of `blocks` where it is there, to the peer's; the peer's form and ours name them."""
    found: Figures = {}
    for threads in THREADS:
        taken = compare(entrants, threads, contexts, rounds=rounds)
        found |= figures_of(taken, peer, form, precision, threads)
    names = {"": "ours", "_blocks": "blocks"}
    for ending in (ending for ending, name in names.items() if name in entrants):
        every = [value for key, value in found.items() if key.startswith(f"{peer}_ratio.{form}{ending}.")]
        found[f"{peer}_ratio.{form}{ending}"] = min(every)
    prompts = [value for key, value in found.items() if key.startswith(f"prefill_ratio.{peer}.{form}.")]
    found[f"prefill_ratio.{peer}.{form}"] = min(prompts)
    return found


def figures_of(taken: Mapping[str, list[Seconds]], peer: str, form: str, precision: str, threads: int) -> Figures:
    """Of one comparison."""
    found: Figures = {}
    for what, rounds in taken.items():
        place = f"{what}.{threads}"
        found[f"ms.{precision}.{place}"] = milliseconds(rounds, "ours")
        found[f"ms.{peer}-{form}.{place}"] = milliseconds(rounds, peer)
        ratio = times_as_fast(rounds, "ours", peer)
        found[f"prefill_ratio.{peer}.{form}.{threads}" if what == "prompt" else f"{peer}_ratio.{form}.{place}"] = ratio
        if "blocks" in rounds[0]:
            found[f"ms.int8.{place}"] = milliseconds(rounds, "blocks")
            if what != "prompt":
                found[f"{peer}_ratio.{form}_blocks.{place}"] = times_as_fast(rounds, "blocks", peer)
    return found


def memory(entrants: Mapping[str, Entrant], precision: str) -> Figures:
    """What each process has more than before it opened its model."""
    found = {}
    for name, entrant in entrants.items():
        with Worker(entrant, 1) as worker:
            worker.ask(do="prompt", count=PROMPT)
            worker.ask(do="tokens", context=CONTEXTS[-1], count=4)
            found[name] = worker.ask(do="memory")["more_mb"]
            found[name] = max(found[name], 1.0)
    ratio = found["ours"] / found["genai"]
    return {
        f"memory_ratio.{precision}": ratio,
        f"memory_mb.{precision}": found["ours"],
        f"memory_mb.genai-{precision}": found["genai"],
    }


def with_prefill(found: Figures, summary: Path = SUMMARY) -> Figures:
    """`prefill_ratio` over what is known of both peers."""
    known = json.loads(summary.read_text(encoding="utf-8"))["figures"] if summary.exists() else {}
    every = [value for key, value in {**known, **found}.items() if key.count(".") == 2 and key.startswith("prefill_ratio.")]
    return {**found, "prefill_ratio": min(every)}
