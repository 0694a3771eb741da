"""One engine that decodes, in a process of its own: `python worker.py ENGINE MODEL THREADS`.

It runs in the environment of the engine and imports nothing else. Requests come as lines of JSON on stdin, and what they took
is answered on stdout: {"do": "tokens", "context": 256, "count": 8}, {"do": "prompt", "count": 512}, {"do": "memory"},
{"do": "score", "texts": FILE}. Times are seconds, of the processor (all threads) and of the wall.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

ROOM = 1280  # tokens of a text, for those that reserve them


class Engine(Protocol):
    vocabulary: int

    def prompt(self, ids: list[int]) -> None:
        """Reads a prompt as one that is new, and chooses the token that follows."""

    def tokens(self, ids: list[int]) -> Iterator[int]:
        """Reads what it lacks of these, and then goes on token by token, whatever they are; the likeliest each time."""


class Ours:
    """The loop that `sortednet generate` has, over a graph. `model`: BUNDLE:SUB_MODEL, or a graph with the spec of another."""

    def __init__(self, model: str, threads: int) -> None:
        from exporter.bundle import Bundle
        from exporter.bundle.session import SessionOptions, open_session
        from selector.run.decode import Decoder, GenerationOptions
        from selector.run.generate.described import Described

        folder, _, rest = model.partition("::")
        name, _, graph = rest.partition("::")
        bundle = Bundle(folder, verify=False)
        session = open_session(graph or bundle.graph_path(name), SessionOptions(threads=threads))
        self._decoder = Decoder(session, Described.of(bundle).specs[name])
        self._options = GenerationOptions(ignore_eos=True)
        self._cache = self._decoder.cache()
        self.vocabulary = self._decoder.spec.vocabulary

    def prompt(self, ids: list[int]) -> None:
        self._cache.keep((), self._decoder.spec.layers)
        next(self.tokens(ids))

    def tokens(self, ids: list[int]) -> Iterator[int]:
        for step in self._decoder.generate(ids, self._options, self._cache):
            yield step.token


class GenAI:
    """onnxruntime-genai over the folder of a model."""

    def __init__(self, model: str, threads: int) -> None:
        import onnxruntime_genai as og  # type: ignore[import-not-found]

        config = og.Config(model)
        config.overlay(json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": threads}}}}))
        self._og, self._model = og, og.Model(config)
        self._text: Any = None
        self._read: list[int] = []
        said = json.loads((Path(model) / "genai_config.json").read_text(encoding="utf-8"))
        self.vocabulary = said["model"]["vocab_size"]

    def _anew(self) -> None:
        parameters = self._og.GeneratorParams(self._model)
        parameters.set_search_options(max_length=ROOM, min_length=ROOM, do_sample=False)
        self._text, self._read = self._og.Generator(self._model, parameters), []

    def prompt(self, ids: list[int]) -> None:
        import numpy as np

        self._anew()
        self._text.append_tokens(np.array(ids, dtype=np.int32))
        self._text.generate_next_token()
        self._read = list(ids)

    def tokens(self, ids: list[int]) -> Iterator[int]:
        if self._read == ids:
            self._text.rewind_to(len(ids) - 1)
            import numpy as np

            self._text.append_tokens(np.array(ids[-1:], dtype=np.int32))
            self._text.generate_next_token()
        else:
            self.prompt(ids)
        while True:
            yield int(self._text.get_next_tokens()[0])
            self._text.generate_next_token()


class LlamaCpp:
    """llama.cpp through llama-cpp-python over a file of GGUF."""

    def __init__(self, model: str, threads: int) -> None:
        import llama_cpp  # type: ignore[import-not-found]
        import numpy as np

        self._llama = llama_cpp.Llama(
            model, n_ctx=ROOM, n_batch=512, n_ubatch=512, n_threads=threads, n_threads_batch=threads, verbose=False
        )
        self.vocabulary = self._llama.n_vocab()
        self._module, self._np, self._file = llama_cpp, np, model

    def logits(self, ids: list[int]) -> Any:
        """After each of these, (T, V)."""
        llama = self._module.Llama(self._file, n_ctx=ROOM, n_batch=512, logits_all=True, verbose=False)
        llama.eval(ids)
        return llama.scores[: len(ids)]

    def _likeliest(self) -> int:
        pointer = self._module.llama_get_logits_ith(self._llama.ctx, -1)
        return int(self._np.ctypeslib.as_array(pointer, (self.vocabulary,)).argmax())

    def prompt(self, ids: list[int]) -> None:
        self._llama.reset()
        self._llama.eval(ids)
        self._likeliest()

    def tokens(self, ids: list[int]) -> Iterator[int]:
        known = self._llama.n_tokens >= len(ids) and self._llama.input_ids[: len(ids)].tolist() == ids
        if known:
            self._llama.n_tokens = len(ids) - 1
            self._llama.eval(ids[-1:])
        else:
            self.prompt(ids)
        while True:
            token = self._likeliest()
            yield token
            self._llama.eval([token])


ENGINES: dict[str, Callable[[str, int], Engine]] = {"ours": Ours, "genai": GenAI, "llamacpp": LlamaCpp}


def resident_mb() -> float:
    """What this process has in memory, without what others could read from the same files."""
    lines = Path("/proc/self/smaps_rollup").read_text(encoding="ascii").splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Rss:")) / 1024


def ids_of(count: int, vocabulary: int) -> list[int]:
    """The same ones for every engine; low ones are special."""
    state, found, least = 12345, list[int](), min(100, vocabulary // 2)
    for _ in range(count):
        state = (1103515245 * state + 12345) % 2**31
        found.append(least + (state >> 8) % (vocabulary - least))
    return found


def perplexity(engine: Any, file: str) -> float:
    """Of the targets that are none of -100, in arrays ids0, targets0, …"""
    import numpy as np

    lost, count = 0.0, 0
    with np.load(file) as arrays:
        for number in range(len(arrays.files) // 2):
            targets = arrays[f"targets{number}"]
            logits = np.asarray(engine.logits(arrays[f"ids{number}"].tolist()), dtype=np.float64)
            highest = logits.max(axis=1)
            total = highest + np.log(np.exp(logits - highest[:, None]).sum(axis=1))
            places = np.flatnonzero(targets != -100)
            lost += float((total[places] - logits[places, targets[places]]).sum())
            count += len(places)
    return float(np.exp(lost / count))


def answer(engine: Engine, request: dict[str, Any], before_mb: float) -> dict[str, Any]:
    """What a request asks for."""
    if request["do"] == "memory":
        return {"mb": resident_mb(), "more_mb": resident_mb() - before_mb}
    if request["do"] == "score":
        return {"perplexity": perplexity(engine, request["texts"])}
    wall: list[float] = []
    processor: list[float] = []
    if request["do"] == "prompt":
        ids = ids_of(request["count"], engine.vocabulary)
        run: Callable[[], object] = lambda: engine.prompt(ids)  # noqa: E731
        repeats = 1
    else:
        text = engine.tokens(ids_of(request["context"], engine.vocabulary))
        next(text)  # the prompt, or its last token
        next(text)  # the first that was not the prompt's
        run, repeats = lambda: next(text), request["count"]
    for _ in range(repeats):
        begun, used = time.perf_counter(), time.process_time()
        run()
        processor.append(time.process_time() - used)
        wall.append(time.perf_counter() - begun)
    return {"wall": wall, "processor": processor}


def main() -> None:
    kind, model, threads = sys.argv[1], sys.argv[2], int(sys.argv[3])
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    __import__({"ours": "selector.run.generate", "genai": "onnxruntime_genai", "llamacpp": "llama_cpp"}[kind])
    before_mb = resident_mb()
    engine = ENGINES[kind](model, threads)
    for line in sys.stdin:
        print(json.dumps(answer(engine, json.loads(line), before_mb)), file=answers, flush=True)


if __name__ == "__main__":
    main()
