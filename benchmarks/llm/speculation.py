"""Guessed tokens against plain decoding: the same text, how much sooner, with how much memory, and against other engines.

`python -m benchmarks.llm.speculation PART…`. The prompts are `benchmarks.llm.prompts`'s, five kinds, none of which the training
has seen. The bundle is exported from what `benchmarks.llm.measured` measures, with exits, or is the folder that LLM_SPECULATION
names. Times are of tokens after the first: processor time of one thread, wall time of two.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks.llm import speculation_drawn, speculation_peers
from benchmarks.pieces import Pieces, hash_of
from benchmarks.summary import run_parts
from exporter.bundle import Bundle
from exporter.bundle.session import SessionOptions, open_session
from selector.run import decode
from selector.run.decode import Decoder, GenerationOptions
from selector.run.decode.opening import DecoderOpener, DecodingProgram, decoder_spec
from selector.run.decode.speculation import Speculation
from selector.run.generate.described import Described
from selector.run.generate.prompts import Prompts

RESULTS = Path(__file__).parent / "results"
COMMAND = "python -m benchmarks.llm.speculation"
WORK = Path(os.environ.get("LLM_WORK", "build/llm"))
EXITS = (8, 12)
PRECISIONS = ("fp32", "int8-rows", "int8")
COPY = ("edit", "summarise", "news", "code")
KINDS = ("chat", *COPY)
TOKENS = int(os.environ.get("LLM_SPECULATION_TOKENS", "64"))
EACH = int(os.environ.get("LLM_SPECULATION_PROMPTS", "40"))  # of a kind
TIMED = min(EACH, int(os.environ.get("LLM_SPECULATION_TIMED", "12")))  # of these
LOSSY = min(TIMED, 8)
ROOM = 1536  # tokens of a prompt and its text, at most

NOTES = {
    "spec_identical": "share of prompts whose text is, token for token, plain decoding's of the same graph: 5 kinds, 3 "
    "precisions, 1 and 2 threads",
    "spec_sampled_p": "chi-squared test of 20,000 drawn continuations of 3 tokens against the probabilities of plain decoding",
    "spec_speedup.copy.fp32": f"edit, summarise, news, code together, {TIMED} prompts of each, {TOKENS} tokens; the lower of "
    "processor time with 1 thread and wall time with 2; against the graph without padding",
    "spec_speedup_min": "the slowest kind at fp32 and int8 rows",
    "spec_model_error": "measured speed-up, over the graph that verifies, against what the costs of calls predict for the "
    "calls that were made, worst precision, one thread",
    "spec_padding.fp32": "time of a token of the graph that verifies, without guesses, over that of the plain one",
    "spec_memory_ratio": "resident memory of a process that guesses by lookup and exits, against one that does not",
}


@dataclass(frozen=True)
class Opened:
    """The full size in a precision: as it decodes by itself, and as it guesses."""

    submodel: str
    plain: Decoder
    padded: Decoder
    program: DecodingProgram


@dataclass
class Took:
    """Of one kind of prompts, seconds."""

    plain: float = 0.0
    padded: float = 0.0  # by the graph that verifies, without guesses
    guessed: float = 0.0
    tokens: int = 0
    accepted: int = 0
    drafted: int = 0
    predicted: float = 0.0  # calls of one token, as the costs have it
    by_kind: Counter[str] = field(default_factory=Counter)


@cache
def bundle() -> Bundle:
    """The one that is named, or that of what is measured, exported once."""
    if named := os.environ.get("LLM_SPECULATION"):
        return Bundle(named, verify=False)
    place = WORK / "speculation"
    if not place.exists():
        from benchmarks.llm.measured import measured
        from exporter.decoder.export import DecodingOptions, export_decoder

        given = measured()
        export_decoder(
            given.nested,
            place,
            submodels=[given.nested.family.largest],
            precisions=PRECISIONS,
            options=DecodingOptions(speculation=True, exits=EXITS),
            scores=given.scores,
            files=given.files,
            preprocessing=given.preprocessing,
        )
    return Bundle(place, verify=False)


def full_of(precision: str) -> str:
    """The largest sub-model of that precision."""
    own = [entry for entry in bundle().manifest.submodels if entry.precision == precision]
    return max(own, key=lambda entry: entry.macs).id


@cache
def opened(precision: str, threads: int, mode: str = "auto") -> Opened:
    """With a new memory of what was accepted."""
    name, options = full_of(precision), SessionOptions(threads=threads, spinning=threads > 1)
    program = DecoderOpener(bundle(), options, mode)(name, lambda: 1 / 0)  # type: ignore[arg-type, return-value]
    assert isinstance(program, DecodingProgram)
    plain = Decoder(open_session(bundle().graph_path(name), options), decoder_spec(bundle(), name))
    return Opened(name, plain, program.decoder(decoder_spec(bundle(), name, 1)), program)


@cache
def asked(kind: str, count: int = EACH) -> list[list[int]]:
    """Token ids of the first of a kind's prompts."""
    from benchmarks.llm.prompts import held_out_prompts

    prompts = Prompts(Described.of(bundle()))
    found = [prompts.ids(one) for one in held_out_prompts(kind)[:EACH]]
    return [ids for ids in found if len(ids) + TOKENS < ROOM][:count]


def _speculation(one: Opened, mode: str = "auto") -> Speculation:
    assert one.program.verifier is not None, one.program.problem
    return Speculation(one.program.verifier.adaptive, mode, head=one.program.verifier.head)  # type: ignore[arg-type]


def _options() -> GenerationOptions:
    return GenerationOptions(max_tokens=TOKENS, ignore_eos=True)


def identical() -> dict[str, float]:
    """Texts with guesses against texts without, of the graph that verifies."""
    done = Pieces(WORK / "pieces" / "identical.jsonl", hash_of(bundle().manifest.sha256, f"{EACH} {TOKENS}", decode))
    found: list[bool] = []
    for precision, threads, kind in product(PRECISIONS, (1, 2), KINDS):
        name = f"{precision}, {threads}, {kind}"
        found += done.of(name, lambda p=precision, t=threads, k=kind: [_is_identical(p, t, ids) for ids in asked(k)])  # type: ignore[misc]
    return {"spec_identical": sum(found) / len(found), "spec_identical_prompts": len(found)}


def _is_identical(precision: str, threads: int, ids: list[int]) -> bool:
    one = opened(precision, threads)
    plain = [step.token for step in one.padded.generate(ids, _options())]
    return plain == [step.token for step in one.padded.generate(ids, _options(), speculation=_speculation(one))]


def _timed(steps: Iterator[Any], clock: Callable[[], float]) -> tuple[float, list[Any]]:
    """Seconds of the tokens after the first, and all of them."""
    found = [next(steps)]
    begun = clock()
    found += steps
    return clock() - begun, found


@cache
def _measured(precision: str, threads: int) -> dict[str, Took]:
    """By kind; each prompt plainly and with guesses, one after the other, in turns."""
    one = opened(precision, threads)
    found: dict[str, Took] = {}
    clock = time.process_time if threads == 1 else time.perf_counter
    for kind in KINDS:
        took = found[kind] = Took()
        for number, ids in enumerate(asked(kind, TIMED)):
            speculation = _speculation(one)
            ways: dict[str, Callable[[], Iterator[Any]]] = {
                "plain": partial(one.plain.generate, ids, _options()),
                "padded": partial(one.padded.generate, ids, _options()),
                "guessed": partial(one.padded.generate, ids, _options(), speculation=speculation),
            }
            for way in list(ways)[:: 1 if number % 2 else -1]:
                seconds, steps = _timed(ways[way](), clock)
                if way != "guessed":
                    setattr(took, way, getattr(took, way) + seconds)
                    continue
                speculation.end()
                took.guessed += seconds
                took.tokens += len(steps) - 1
                took.accepted += speculation.figures.accepted
                took.drafted += speculation.figures.drafted
                took.by_kind.update(speculation.figures.by)
                took.predicted += sum(step.call.worth or 1.0 for step in steps[1:] if step.call.tokens)
    return found


def _speedup(precision: str, kinds: Sequence[str]) -> float:
    return min(
        sum(_measured(precision, threads)[kind].plain for kind in kinds)
        / sum(_measured(precision, threads)[kind].guessed for kind in kinds)
        for threads in (1, 2)
    )


def speedup() -> dict[str, float]:
    """Tokens per second with guesses, by those without, of the fastest graph of the precision."""
    found = {}
    for precision in ("fp32", "int8-rows"):
        name = precision.replace("-", "_")
        found[f"spec_speedup.copy.{name}"] = _speedup(precision, COPY)
        for kind in KINDS:
            found[f"spec_speedup.{kind}.{name}"] = _speedup(precision, (kind,))
            took = _measured(precision, 1)[kind]
            found[f"spec_acceptance.{kind}.{name}"] = took.accepted / max(1, took.drafted)
    found["spec_speedup_8bit"] = _speedup("int8", COPY)
    found["spec_speedup_min"] = min(_speedup(precision, (kind,)) for precision in ("fp32", "int8-rows") for kind in KINDS)
    return found


def model_error() -> dict[str, float]:
    """How far the speed-up that calls' costs predict, for the calls that were made, is off the one that is measured, both over
    the same graph without guesses, on the copy-like prompts. And how much slower that graph is than the plain one."""
    found = {}
    for precision in PRECISIONS:
        took, name = [_measured(precision, 1)[kind] for kind in COPY], precision.replace("-", "_")
        measured = sum(one.padded for one in took) / sum(one.guessed for one in took)
        predicted = sum(one.tokens for one in took) / sum(one.predicted for one in took)
        found[f"spec_model_error.{name}"] = abs(predicted / measured - 1)
        found[f"spec_padding.{name}"] = sum(one.padded for one in took) / sum(one.plain for one in took)
    return {"spec_model_error": max(value for key, value in found.items() if "error" in key), **found}


def exits() -> dict[str, float]:
    """Without verification: how fast an exit alone is, and how often the whole model would have said otherwise."""
    one, found = opened("fp32", 1), {}
    for sure in (0.5, 0.8, 0.95):
        plain = hasty = 0.0
        exited = checked = differed = 0
        for kind in KINDS:
            for ids in asked(kind, LOSSY):
                assert one.program.verifier is not None
                speculation = Speculation(
                    one.program.verifier.adaptive, "exit", head=one.program.verifier.head, early_exit=sure
                )
                plain += _timed(one.plain.generate(ids, _options()), time.process_time)[0]
                hasty += _timed(one.padded.generate(ids, _options(), speculation=speculation), time.process_time)[0]
                figures = speculation.figures
                exited, checked = exited + figures.exited, checked + figures.checked
                differed += figures.differed
        found[f"spec_early_exit_speedup.{sure}"] = plain / hasty
        found[f"spec_early_exit_exited.{sure}"] = exited / (len(KINDS) * LOSSY * TOKENS)
        found[f"spec_early_exit_differs.{sure}"] = differed / max(1, checked)
    return found


def sampled() -> dict[str, float]:
    """Drawn texts, always guessed, against the probabilities of plain decoding."""
    return {"spec_sampled_p": speculation_drawn.p_value(opened("int8-rows", 1, "ngram").padded)}


def memory() -> dict[str, float]:
    """Each in a process of its own, after a text."""
    worst = 0.0
    for precision in ("fp32", "int8-rows"):
        mb = {}
        for mode in ("off", "auto"):
            command = [sys.executable, "-m", "benchmarks.llm.speculation", "--memory", precision, mode]
            mb[mode] = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])
        worst = max(worst, mb["auto"] / mb["off"])
    return {"spec_memory_ratio": worst}


def _memory_of(precision: str, mode: str) -> float:
    """MB that are resident after a text of this process."""
    name, options = full_of(precision), SessionOptions(threads=1)
    ids = list(range(100, 400))
    if mode == "off":
        decoder = Decoder(open_session(bundle().graph_path(name), options), decoder_spec(bundle(), name))
        list(decoder.generate(ids, _options()))
    else:
        program = DecoderOpener(bundle(), options, "auto")(name, lambda: 1 / 0)  # type: ignore[arg-type, return-value]
        assert isinstance(program, DecodingProgram)
        assert program.verifier is not None
        decoder = program.decoder(decoder_spec(bundle(), name, 1))
        speculation = Speculation(program.verifier.adaptive, "auto", head=program.verifier.head)
        list(decoder.generate(ids, _options(), speculation=speculation))
    lines = Path("/proc/self/smaps_rollup").read_text(encoding="ascii").splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Rss:")) / 1024


def peers() -> dict[str, float]:
    """Copy-like prompts at fp32, one thread, processor time: ours with guesses, by each peer's best."""
    prompts = [ids for kind in COPY for ids in asked(kind, TIMED)]
    one = opened("fp32", 1)
    found = {}
    for name in ("genai", "llamacpp"):
        theirs = speculation_peers.processor_seconds(name, prompts, TOKENS)
        ours = 0.0
        for ids in prompts:
            ours += _timed(one.padded.generate(ids, _options(), speculation=_speculation(one)), time.process_time)[0]
        found[f"spec_{name}_ratio"] = theirs / ours
    return found


PARTS: dict[str, Callable[[], dict[str, float]]] = {
    "spec_identical": identical,
    "spec_sampled": sampled,
    "spec_speedup": speedup,
    "spec_model": model_error,
    "spec_exits": exits,
    "spec_memory": memory,
    "spec_peers": peers,
}


def main() -> None:
    if sys.argv[1:2] == ["--memory"]:
        print(json.dumps(_memory_of(*sys.argv[2:4])))
        return
    RESULTS.mkdir(exist_ok=True)
    run_parts(RESULTS, COMMAND, PARTS, NOTES, sys.argv[1:])


if __name__ == "__main__":
    main()
